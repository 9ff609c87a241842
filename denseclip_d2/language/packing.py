from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONTEXT = -1
"""Stands for the first context vector among token ids; -2 for the second, and so on."""


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts packed into one sequence: a tree of tokens, in which prompts share what they begin with.

    Attention is causal, so that a token's hidden state depends on the tokens before it alone, and equal
    beginnings have equal states. By ``mask``, a token sees only the tokens before it in its own prompts.

    Attributes:
        ids: (T,) token ids; the contexts' places, below zero, come directly after the start token, if any.
        positions: (T,) of each token in its prompts.
        mask: (T, T), added to attention's logits: 0 or -inf.
        ends: (k,) where the end token of each of k prompts is.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    ends: Tensor


def pack_prompts(
    ids: Tensor, num_contexts: int, max_tokens: int, *, ends: Tensor | None = None, start: int = 1
) -> list[PackedPrompts]:
    """Pack prompts, in their order, into sequences of at most ``max_tokens`` (or of one prompt, if longer).

    Args:
        ids: (K, L) token ids, ``[sot] name [eot]`` and padding.
        num_contexts: context vectors to go after the start token.
        ends: (K,) where the end tokens are; None: where ids are highest, as CLIP's are.
        start: number of start tokens, 1 or 0.
    """
    ends = ids.argmax(dim=1) if ends is None else ends
    contexts = list(range(CONTEXT, CONTEXT - num_contexts, -1))
    prompts = [
        row[:start] + contexts + row[start : end + 1]
        for row, end in zip(ids.tolist(), ends.tolist(), strict=True)
    ]
    return [_pack(group, ids.device) for group in _groups(prompts, max_tokens)]


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


def _pack(prompts: Sequence[list[int]], device: torch.device) -> PackedPrompts:
    tree: dict[tuple[int, int], int] = {}  # (parent's place, token) to place
    ends = []
    for prompt in prompts:
        place = -1
        for token in prompt:
            place = tree.setdefault((place, token), len(tree))
        ends.append(place)
    sees = torch.eye(len(tree), dtype=torch.bool)
    for (parent, _), place in tree.items():
        if parent >= 0:
            sees[place] |= sees[parent]
    mask = torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)
    tokens = torch.tensor([token for _, token in tree])
    return PackedPrompts(
        tokens.to(device), (sees.sum(1) - 1).to(device), mask.to(device), torch.tensor(ends, device=device)
    )
