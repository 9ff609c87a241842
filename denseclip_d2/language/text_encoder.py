from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..clip_models import CLIPArchitecture
from ..clip_models.layers import QuickGELU
from .prefix_tree import PrefixTree, build_prefix_tree
from .tokenizers import Tokenizer, clip_tokenizer

PACK_TOKENS = {"cpu": 256, "cuda": 1024}
"""Tokens that are encoded as one sequence: enough to fill a device, few enough to make attention cheap."""

STORED_PACKS = 8
"""Sequences whose activations are stored, 63 MB each at CLIP's width; the others are recomputed."""

# open_clip's text encoder and its config share these names.
_FIELDS = (
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value",
    "no_causal_mask", "eos_id", "pool_type", "proj_type", "proj_bias",
)  # fmt: skip


class CLIPTextEncoder(TextTransformer):
    """CLIP's text transformer, frozen, with room for context vectors between start token and name.

    Gradients flow through the encoder to the contexts. Its own parameters have ``requires_grad=False`` and
    the names that they have in CLIP. Where attention is causal, prompts share the computation of equal
    beginnings (:class:`PrefixTree`). Other encoders, such as SigLIP's, read every prompt with its padding.
    """

    def __init__(self, *, quick_gelu: bool = False, start: int = 1, **kwargs):
        """
        Args:
            quick_gelu: x * sigmoid(1.702 x) for GELU, as OpenAI's weights need.
            start: number of start tokens of the tokenizer, 1 or 0.
            kwargs: as for open_clip's ``TextTransformer``.
        """
        super().__init__(**{"act_layer": QuickGELU if quick_gelu else nn.GELU, **kwargs})
        self.quick_gelu = quick_gelu
        self.start = start
        self.requires_grad_(False)

    @classmethod
    def from_architecture(
        cls, architecture: CLIPArchitecture, tokenizer: Tokenizer | None = None
    ) -> "CLIPTextEncoder":
        """Build the text encoder of an architecture, with random weights.

        Args:
            tokenizer: decides start tokens and padding; None: CLIP's.
        """
        text, tokenizer = architecture.text, tokenizer or clip_tokenizer()
        activation = QuickGELU if architecture.quick_gelu else nn.GELU
        return cls(
            quick_gelu=architecture.quick_gelu,
            start=tokenizer.start,
            pad_id=tokenizer.pad_id,
            output_dim=architecture.embed_dim,
            act_layer=partial(activation, **(text.act_kwargs or {})),
            norm_layer=partial(LayerNorm, **(text.norm_kwargs or {})),
            **{name: getattr(text, name) for name in _FIELDS},
        )

    @property
    def reads_padding(self) -> bool:
        """Return whether tokens after the end of a prompt count; prompts then have ``context_length``."""
        return self.attn_mask is None or self.pool_type == "last"

    def forward(self, prompts: Tensor | nn.ModuleList, contexts: Tensor | None = None) -> Tensor:
        """
        Args:
            prompts: (K, L) token ids, ``[sot] name [eot]`` and padding, or what :meth:`pack` made of them.
            contexts: (B, N, D) vectors after the start token of every name; None: no contexts.
        Returns: (B, K, C) text embeddings, B = 1 without contexts.
        """
        parts: Sequence[Any]  # token ids or packs, as ``encode`` takes them
        encode: Callable[..., Tensor]
        if self.reads_padding:
            assert isinstance(prompts, Tensor)
            parts = prompts.split(max(1, tokens_of_pack(prompts.device) // self.context_length))
            encode = self.encode_unpacked
        else:
            if isinstance(prompts, Tensor):
                prompts = self.pack(prompts, 0 if contexts is None else contexts.shape[1])
            parts, encode = list(prompts), self._encode
        return encode_parts(encode, parts, contexts)

    def pack(self, ids: Tensor, n_ctx: int, max_tokens: int = 0) -> nn.ModuleList:
        """Return the prompts' token layout, of :class:`PrefixTree`; empty if the encoder reads padding.

        Args:
            ids: (K, L) token ids.
            n_ctx: number of context vectors of each prompt.
            max_tokens: tokens of a sequence; 0: what suits the device of ``ids``.
        """
        if self.reads_padding:
            return nn.ModuleList()
        max_tokens, ends = max_tokens or tokens_of_pack(ids.device), self._ends(ids)
        return nn.ModuleList(build_prefix_tree(ids, n_ctx, max_tokens, ends=ends, start=self.start))

    def _encode(self, pack: PrefixTree, contexts: Tensor | None) -> Tensor:
        x = self.token_embedding(pack.ids.clamp(min=0))[None]  # (1, T, D)
        if contexts is not None:
            batch, n_ctx, _ = contexts.shape
            x = x.expand(batch, -1, -1)
            x = torch.cat([x[:, : self.start], contexts, x[:, self.start + n_ctx :]], dim=1)  # (B, T, D)
        x = self.transformer(x + self.positional_embedding[pack.positions], attn_mask=pack.mask)
        return self._project(x[:, pack.ends])

    def encode_unpacked(self, ids: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Return what :meth:`forward` does, by its definition: every prompt alone, and padded."""
        # len() would be a constant of a trace.
        num_classes, n_ctx = ids.shape[0], 0 if contexts is None else contexts.shape[1]
        if self.reads_padding and (missing := self.context_length - n_ctx - ids.shape[1]) > 0:
            ids = F.pad(ids, (0, missing), value=self.pad_id)
        x, end = self.token_embedding(ids)[None], self._ends(ids)  # (1, K, L, D)
        if contexts is not None:
            x, end = insert_contexts(x, contexts, self.start), end + n_ctx  # (B, K, N + L, D)
        length = x.shape[2]
        x = (x + self.positional_embedding[:length]).flatten(0, 1)
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.transformer(x, attn_mask=mask).unflatten(0, (-1, num_classes))
        return self._project(x[:, torch.arange(num_classes, device=ids.device), end])

    def _ends(self, ids: Tensor) -> Tensor:
        """Return (K,) indices of the tokens whose states are the prompts', without contexts."""
        if self.pool_type == "last":
            return torch.full_like(ids[:, 0], ids.shape[1] - 1)
        if self.pool_type == "eos":
            return (ids == self.eos_id).int().argmax(dim=1)
        return ids.int().argmax(dim=1)  # CLIP's end token has the highest id; LiteRT has no int64 argmax

    def _project(self, x: Tensor) -> Tensor:
        x, projection = self.ln_final(x), self.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def encode_parts(encode: Callable[..., Tensor], parts: Sequence[Any], contexts: Tensor | None) -> Tensor:
    """Return (B, K, C) embeddings of all parts; those after :data:`STORED_PACKS` store no activations."""
    again = partial(checkpoint, encode, use_reentrant=False, preserve_rng_state=False)
    embeddings = [encode(part, contexts) for part in parts[:STORED_PACKS]]
    embeddings += [again(part, contexts) for part in parts[STORED_PACKS:]]
    return torch.cat(embeddings, dim=1)


def insert_contexts(x: Tensor, contexts: Tensor, start: int) -> Tensor:
    """Return tokens (1, K, L, D) with contexts (B, N, D) after their start tokens: (B, K, N + L, D)."""
    contexts = contexts[:, None].expand(-1, x.shape[1], -1, -1)
    x = x.expand(len(contexts), -1, -1, -1)
    return torch.cat([x[:, :, :start], contexts, x[:, :, start:]], dim=2)


def tokens_of_pack(device: torch.device) -> int:
    """Return how many tokens a device encodes as one sequence."""
    return PACK_TOKENS.get(device.type, PACK_TOKENS["cuda"])
