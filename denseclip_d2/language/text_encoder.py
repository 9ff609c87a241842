import torch
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from ..clip_models import CLIPArchitecture


class CLIPTextEncoder(TextTransformer):
    """CLIP's text transformer, frozen, with room for context vectors between start token and name.

    Gradients flow through it to the contexts; its own parameters have ``requires_grad=False`` and carry the
    names they have in CLIP.
    """

    def __init__(self, *, quick_gelu: bool = False, **kwargs):
        """
        Args:
            quick_gelu: x * sigmoid(1.702 x) for GELU, as OpenAI's weights need.
            kwargs: as for open_clip's ``TextTransformer``.
        """
        super().__init__(act_layer=QuickGELU if quick_gelu else nn.GELU, **kwargs)
        self.quick_gelu = quick_gelu
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
        num_classes, tokens = len(ids), self.token_embedding(ids)[None]  # (1, K, L, D)
        end = ids.argmax(dim=-1)  # the end token has the highest id
        if contexts is not None:
            batch, num_contexts, _ = contexts.shape
            contexts = contexts[:, None].expand(-1, num_classes, -1, -1)
            tokens = tokens.expand(batch, -1, -1, -1)
            tokens = torch.cat([tokens[:, :, :1], contexts, tokens[:, :, 1:]], dim=2)  # (B, K, N + L, D)
            end = end + num_contexts
        length = tokens.shape[2]
        x = (tokens + self.positional_embedding[:length]).flatten(0, 1)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = x.unflatten(0, (-1, num_classes))[:, torch.arange(num_classes, device=ids.device), end]
        return self.ln_final(x) @ self.text_projection
