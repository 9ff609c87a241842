from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

CONTEXT = -1
"""Stands for the first context vector among token ids; -2 stands for the second, and so on."""


class PrefixTree(nn.Module):
    """Prompts packed into one sequence: a tree of tokens, in which prompts share their beginnings.

    Attention is causal: the hidden state of a token depends only on the tokens before it. Equal beginnings
    therefore have equal states. With ``mask``, a token sees only the tokens before it in its own prompts.

    The tensors are buffers that follow the model to its device and are not in the state dict.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    ends: Tensor

    def __init__(self, ids: Tensor, positions: Tensor, mask: Tensor, ends: Tensor):
        """
        Args:
            ids: (T,) token ids. Context vectors have ids below zero, directly after the start token, if any.
            positions: (T,) position of each token in its prompts.
            mask: (T, T), added to the logits of attention: 0 or -inf.
            ends: (k,) index of the end token of each of k prompts.
        """
        super().__init__()
        for name, tensor in (("ids", ids), ("positions", positions), ("mask", mask), ("ends", ends)):
            self.register_buffer(name, tensor, persistent=False)


def build_prefix_tree(
    ids: Tensor, n_ctx: int, max_tokens: int, *, ends: Tensor | None = None, start: int = 1
) -> list[PrefixTree]:
    """Pack prompts, in order, into sequences of at most ``max_tokens``, or of one prompt if it is longer.

    Args:
        ids: (K, L) token ids, ``[sot] name [eot]`` and padding.
        n_ctx: number of context vectors after the start token.
        ends: (K,) index of each end token; None: the index of the highest id, as in CLIP.
        start: number of start tokens, 1 or 0.
    """
    ends = ids.argmax(dim=1) if ends is None else ends
    contexts = list(range(CONTEXT, CONTEXT - n_ctx, -1))
    prompts = [
        row[:start] + contexts + row[start : end + 1]
        for row, end in zip(ids.tolist(), ends.tolist(), strict=True)
    ]
    return [_pack(group).to(ids.device) for group in _groups(prompts, max_tokens)]


def _groups(prompts: Sequence[list[int]], max_tokens: int) -> Iterator[Sequence[list[int]]]:
    first = 0
    beginnings: set[tuple[int, ...]] = set()
    for i, prompt in enumerate(prompts):
        new = {tuple(prompt[: j + 1]) for j in range(len(prompt))}
        if i > first and len(beginnings | new) > max_tokens:
            yield prompts[first:i]
            first, beginnings = i, set()
        beginnings |= new
    yield prompts[first:]


def _pack(prompts: Sequence[list[int]]) -> PrefixTree:
    tree: dict[tuple[int, int], int] = {}  # (index of the parent, token) to index
    ends = []
    for prompt in prompts:
        place = -1
        for token in prompt:
            place = tree.setdefault((place, token), len(tree))
        ends.append(place)
    with torch.device("cpu"):  # also where a model is built on the meta device
        sees = torch.eye(len(tree), dtype=torch.bool)
        for (parent, _), place in tree.items():
            if parent >= 0:
                sees[place] |= sees[parent]
        mask = torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)
        tokens = torch.tensor([token for _, token in tree])
        return PrefixTree(tokens, sees.sum(1) - 1, mask, torch.tensor(ends))
