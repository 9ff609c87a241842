from functools import partial

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..clip_models import CLIPArchitecture
from ..layers import QuickGELU
from .memo import TensorMemo
from .packing import PackedPrompts, pack_prompts

PACK_TOKENS = 256
"""Tokens encoded as one sequence: enough to fill a processor, few enough for attention to cost little."""

STORED_PACKS = 8
"""Sequences whose activations are stored, at CLIP's width 63 MB each; those of others are computed again."""


class CLIPTextEncoder(TextTransformer):
    """CLIP's text transformer, frozen, with room for context vectors between start token and name.

    Gradients flow through it to the contexts; its own parameters have ``requires_grad=False`` and carry the
    names they have in CLIP. Beginnings that prompts share are computed once (:class:`PackedPrompts`).
    """

    def __init__(self, *, quick_gelu: bool = False, **kwargs):
        """
        Args:
            quick_gelu: x * sigmoid(1.702 x) for GELU, as OpenAI's weights need.
            kwargs: as for open_clip's ``TextTransformer``.
        """
        super().__init__(act_layer=QuickGELU if quick_gelu else nn.GELU, **kwargs)
        self.quick_gelu = quick_gelu
        self._packs = TensorMemo[list[PackedPrompts]]()
        self.requires_grad_(False)

    @classmethod
    def from_architecture(cls, architecture: CLIPArchitecture) -> "CLIPTextEncoder":
        text = architecture.text
        return cls(
            quick_gelu=architecture.quick_gelu,
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            width=text.width,
            heads=text.heads,
            layers=text.layers,
            mlp_ratio=text.mlp_ratio,
            output_dim=architecture.embed_dim,
        )

    def forward(self, ids: Tensor, contexts: Tensor | None = None) -> Tensor:
        """
        Args:
            ids: (K, L) token ids, ``[sot] name [eot]`` and padding.
            contexts: (B, N, D) vectors put after the start token of every name; None: none.
        Returns: (B, K, C) text embeddings, B = 1 without contexts.
        """
        num_contexts = 0 if contexts is None else contexts.shape[1]
        packs = self._packs(lambda: pack_prompts(ids, num_contexts, PACK_TOKENS), [ids], num_contexts)
        again = partial(checkpoint, self._encode, use_reentrant=False, preserve_rng_state=False)
        embeddings = [self._encode(pack, contexts) for pack in packs[:STORED_PACKS]]
        embeddings += [again(pack, contexts) for pack in packs[STORED_PACKS:]]
        return torch.cat(embeddings, dim=1)

    def _encode(self, pack: PackedPrompts, contexts: Tensor | None) -> Tensor:
        x = self.token_embedding(pack.ids.clamp(min=0))[None]  # (1, T, D)
        if contexts is not None:
            batch, num_contexts, _ = contexts.shape
            x = x.expand(batch, -1, -1)
            x = torch.cat([x[:, :1], contexts, x[:, 1 + num_contexts :]], dim=1)  # (B, T, D)
        x = self.transformer(x + self.positional_embedding[pack.positions], attn_mask=pack.mask)
        return self.ln_final(x[:, pack.ends]) @ self.text_projection

    def encode_unpacked(self, ids: Tensor, contexts: Tensor | None = None) -> Tensor:
        """What :meth:`forward` computes, by its definition: every prompt whole and alone, and padded.

        For tests and benchmarks.
        """
        num_classes, x = len(ids), self.token_embedding(ids)[None]  # (1, K, L, D)
        end = ids.argmax(dim=-1)
        if contexts is not None:
            contexts = contexts[:, None].expand(-1, num_classes, -1, -1)
            x = x.expand(len(contexts), -1, -1, -1)
            x = torch.cat([x[:, :, :1], contexts, x[:, :, 1:]], dim=2)  # (B, K, N + L, D)
            end = end + contexts.shape[2]
        length = x.shape[2]
        x = (x + self.positional_embedding[:length]).flatten(0, 1)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = x.unflatten(0, (-1, num_classes))[:, torch.arange(num_classes, device=ids.device), end]
        return self.ln_final(x) @ self.text_projection
