from collections.abc import Sequence

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ..clip_models import get_clip_architecture
from .context_decoder import ContextDecoder
from .prompts import check_class_names, tokenize_names
from .text_encoder import CLIPTextEncoder

MODES = ("post", "pre", "context", "template")


class PromptedTextEncoder(nn.Module):
    """Class names to text embeddings, by context-aware prompting (paper, sec. 3.3).

    Modes: "post", learnt contexts whose embeddings the image then refines: t + gamma * decoder(t, image);
    "pre", contexts that a decoder makes from the image; "context", learnt contexts alone (CoOp);
    "template", a fixed sentence and nothing learnt.
    """

    @configurable
    def __init__(
        self,
        *,
        class_names: Sequence[str],
        text_encoder: CLIPTextEncoder,
        mode: str = "post",
        num_contexts: int = 8,
        name_length: int = 0,
        template: str = "a photo of a {}.",
        decoder_width: int = 256,
        decoder_heads: int = 4,
        decoder_layers: int = 3,
        decoder_dropout: float = 0.1,
    ):
        """
        Args:
            class_names: K names, in the order of the class ids.
            name_length: ids a name may take, start and end included; 0 fits the longest.

        Raises:
            ValueError: a name is missing, empty, repeated or too long; an unknown mode.
        """
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"MODEL.DENSECLIP.PROMPT.MODE is {mode!r}; it can be one of {', '.join(MODES)}.")
        check_class_names(class_names)
        self.class_names = tuple(class_names)
        self.mode = mode
        self.text_encoder = text_encoder
        self.register_buffer("prompts", self._prompts(name_length, num_contexts, template), persistent=False)

        width, embed_dim = text_encoder.width, text_encoder.output_dim
        decoder = (embed_dim, decoder_width, decoder_heads, decoder_layers, decoder_dropout)
        if mode in ("post", "context"):
            # As released: of unit variance, where CLIP's token embeddings have a standard deviation of 0.02.
            self.contexts = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_contexts, width)))
        if mode == "post":
            self.context_decoder = ContextDecoder(*decoder)
            self.gamma = nn.Parameter(torch.full((embed_dim,), 1e-4))
        if mode == "pre":
            self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_contexts, embed_dim)))
            self.context_decoder = ContextDecoder(*decoder, output_dim=width)

    @classmethod
    def from_config(cls, cfg, class_names: Sequence[str]):
        architecture = get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)
        prompt, context_decoder = cfg.MODEL.DENSECLIP.PROMPT, cfg.MODEL.DENSECLIP.CONTEXT_DECODER
        return {
            "class_names": class_names,
            "text_encoder": CLIPTextEncoder.from_architecture(architecture),
            "mode": prompt.MODE,
            "num_contexts": prompt.NUM_CONTEXTS,
            "name_length": prompt.NAME_LENGTH,
            "template": prompt.TEMPLATE,
            "decoder_width": context_decoder.WIDTH,
            "decoder_heads": context_decoder.HEADS,
            "decoder_layers": context_decoder.LAYERS,
            "decoder_dropout": context_decoder.DROPOUT,
        }

    def forward(self, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        """
        Args:
            global_embedding: (B, C).
            dense_embedding: (B, C, h, w).
        Returns: (B, K, C) text embeddings; (1, K, C) in the modes that do not look at the image.
        """
        if self.mode == "template":
            return self.text_encoder(self.prompts)
        if self.mode == "pre":
            queries = self.queries.expand(len(global_embedding), -1, -1)
            contexts = self.context_decoder(queries, global_embedding, dense_embedding)
            return self.text_encoder(self.prompts, contexts)
        text = self.text_encoder(self.prompts, self.contexts)
        if self.mode == "context":
            return text
        text = text.expand(len(global_embedding), -1, -1)
        return text + self.gamma * self.context_decoder(text, global_embedding, dense_embedding)

    def _prompts(self, name_length: int, num_contexts: int, template: str) -> Tensor:
        names, available = self.class_names, self.text_encoder.context_length
        if self.mode == "template":
            names, num_contexts = [template.format(name) for name in names], 0
            name_length = 0  # the key speaks of a name, not of a sentence around it
        prompts = tokenize_names(names, name_length, self.text_encoder.vocab_size)
        if len(prompts.unique(dim=0)) < len(prompts):
            raise ValueError(
                "Some class names read the same to CLIP's tokenizer, or PROMPT.TEMPLATE has no {}: "
                f"{', '.join(map(repr, names[:5]))} ... Rename the classes (MODEL.DENSECLIP.CLASS_NAMES)."
            )
        if prompts.shape[1] + num_contexts > available:
            raise ValueError(
                f"The longest class name takes {prompts.shape[1]} tokens, and {num_contexts} contexts "
                f"(MODEL.DENSECLIP.PROMPT.NUM_CONTEXTS) go with it; the text encoder has {available} "
                "positions. Shorten the names or take fewer contexts."
            )
        return prompts
