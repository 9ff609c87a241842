from collections.abc import Sequence

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ..clip_models import get_clip_architecture
from .context_decoder import ContextDecoder
from .graphed import GraphedTextEncoder
from .memo import TensorMemo
from .prompts import check_class_names, check_prompts, tokenize_names
from .text_encoder import CLIPTextEncoder
from .tokenizers import Tokenizer, get_tokenizer

MODES = ("post", "pre", "context", "template")

FOLDED_CANNOT_TRAIN = (
    "A model with folded text has no contexts left to train. Set MODEL.DENSECLIP.PROMPT.FOLDED to False and "
    "train from weights that were not folded, or give a CLIP's as MODEL.DENSECLIP.TEXT_WEIGHTS."
)


class PromptedTextEncoder(nn.Module):
    """Class names to text embeddings, by context-aware prompting (paper, sec. 3.3).

    Modes: "post", learned contexts whose embeddings the image then refines: t + gamma * decoder(t, image);
    "pre", contexts that a decoder makes from the image; "context", learned contexts alone (CoOp);
    "template", a fixed sentence and nothing learned.

    What depends neither on the image nor on what is being learned is computed once and kept until weights,
    names, device, precision or mode change. For inference alone, :meth:`fold_` replaces text encoder and
    contexts by a buffer, ``text_embeddings`` (K, C).
    """

    text_encoder: CLIPTextEncoder | None
    text_embeddings: Tensor | None
    prompts: Tensor | None
    contexts: nn.Parameter | None

    @configurable
    def __init__(
        self,
        *,
        class_names: Sequence[str],
        text_encoder: CLIPTextEncoder | None,
        tokenizer: Tokenizer | None = None,
        embed_dim: int = 0,
        mode: str = "post",
        num_contexts: int = 8,
        name_length: int = 0,
        template: str = "a photo of a {}.",
        context_init: str = "",
        context_std: float = 1.0,
        cuda_graph: bool = True,
        decoder_width: int = 256,
        decoder_heads: int = 4,
        decoder_layers: int = 3,
        decoder_dropout: float = 0.1,
    ):
        """
        Args:
            class_names: K names, in the order of the class ids.
            text_encoder: None builds the folded state, whose ``text_embeddings`` are to be loaded.
            tokenizer: the text encoder's; None: CLIP's.
            embed_dim: C, needed where there is no text encoder to tell it.
            name_length: ids a name may take, start and end included; 0 fits the longest.
            context_init: words that the contexts begin from, of ``num_contexts`` tokens; empty: at random.
            context_std: standard deviation of contexts that begin at random.
            cuda_graph: see :class:`GraphedTextEncoder`.

        Raises:
            ValueError: a name is missing, empty, repeated or too long; an unknown mode, or one that cannot be
                folded.
        """
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"MODEL.DENSECLIP.PROMPT.MODE is {mode!r}; it can be one of {', '.join(MODES)}.")
        check_class_names(class_names)
        self.class_names = tuple(class_names)
        self.mode = mode
        self.num_contexts = num_contexts
        self.name_length = name_length
        self.template = template
        self.text_encoder = text_encoder
        self._tokenizer = tokenizer
        self._kept = TensorMemo[Tensor]()
        self._graphed = GraphedTextEncoder(cuda_graph)
        self.register_buffer("text_embeddings", None)
        self.register_buffer("prompts", None, persistent=False)
        self.register_parameter("contexts", None)
        if text_encoder is None:
            self._check_foldable()
            self.text_embeddings = torch.randn(len(class_names), embed_dim)
        else:
            self.prompts = self._prompts(class_names, text_encoder)
            width, embed_dim = text_encoder.width, text_encoder.output_dim
        decoder = (embed_dim, decoder_width, decoder_heads, decoder_layers, decoder_dropout)
        if mode in ("post", "context") and text_encoder is not None:
            contexts = torch.empty(1, num_contexts, width)
            nn.init.trunc_normal_(contexts, std=context_std, a=-2 * context_std, b=2 * context_std)
            self.contexts = nn.Parameter(contexts)
        self._context_tokens = self._tokens_of(context_init)
        self.begin_contexts()
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
        text_encoder = tokenizer = None
        if not prompt.FOLDED:
            tokenizer = get_tokenizer(architecture)
            weights = cfg.MODEL.DENSECLIP.TEXT_WEIGHTS
            text_encoder = CLIPTextEncoder.from_architecture(architecture, tokenizer, weights)
        return {
            "class_names": class_names,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "embed_dim": architecture.embed_dim,
            "mode": prompt.MODE,
            "num_contexts": prompt.NUM_CONTEXTS,
            "name_length": prompt.NAME_LENGTH,
            "template": prompt.TEMPLATE,
            "context_init": prompt.CONTEXT_INIT,
            "context_std": prompt.CONTEXT_STD,
            "cuda_graph": prompt.CUDA_GRAPH,
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
        Raises:
            ValueError: folded, and in training mode.
        """
        if self.mode == "pre":
            encoder, prompts = self.unfolded()
            return encoder(prompts, self._contexts_from(global_embedding, dense_embedding))
        text = self._text()
        return text if self.mode != "post" else self._refined(text, global_embedding, dense_embedding)

    @torch.no_grad()
    def embed(self, names: Sequence[str], global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        """Text embeddings of any names, as the image refines them beside the model's own.

        Args:
            names: n names, none of which has to be a class of the model, of any length.
            global_embedding, dense_embedding: as for :meth:`forward`.
        Returns: (B or 1, n, C).
        Raises:
            ValueError: names that cannot be told apart, or are too long; folded.
        """
        check_class_names(names)
        encoder, prompts = self.unfolded()
        prompts = self._prompts(names, encoder, any_length=True).to(prompts.device)
        if self.mode == "pre":
            return encoder(prompts, self._contexts_from(global_embedding, dense_embedding))
        text = encoder(prompts, self.contexts)
        if self.mode != "post":
            return text
        # Queries see one another, and in training they saw the model's own names beside them.
        text = torch.cat([self._text(), text], dim=1)
        return self._refined(text, global_embedding, dense_embedding)[:, -len(names) :]

    @torch.no_grad()
    def begin_contexts(self) -> None:
        """Let the contexts begin from the words of ``context_init``, if any, as the text encoder embeds them.

        To be called when the text encoder has got other weights and the contexts have not.
        """
        if self._context_tokens and self.contexts is not None:
            encoder, prompts = self.unfolded()
            tokens = torch.tensor(self._context_tokens, device=prompts.device)
            self.contexts.copy_(encoder.token_embedding(tokens))

    @property
    def folded(self) -> bool:
        """Whether ``text_embeddings`` stand in place of text encoder and contexts."""
        return self.text_encoder is None

    def unfolded(self) -> tuple[CLIPTextEncoder, Tensor]:
        """The text encoder, and the names' token ids (K, L).

        Raises:
            ValueError: folded.
        """
        if self.text_encoder is None or self.prompts is None:
            raise ValueError("Folded text has no text encoder: its embeddings are all that is left of it.")
        return self.text_encoder, self.prompts

    def fold_(self) -> "PromptedTextEncoder":
        """Replace text encoder and contexts by the embeddings they give: the same outputs, for inference.

        ``MODEL.DENSECLIP.PROMPT.FOLDED`` builds a model that loads the weights of a folded one.

        Raises:
            ValueError: in mode "pre".
        """
        self._check_foldable()
        if not self.folded:
            with torch.inference_mode(False), torch.no_grad():  # a buffer that can be written to anywhere
                self.text_embeddings = self._encode()[0]
            self.text_encoder = self.contexts = self.prompts = None
            self._kept.forget()
        return self

    def set_class_names(self, names: Sequence[str]) -> None:
        """Put other names in place of the K class names.

        Raises:
            ValueError: as of the constructor; other than K names; folded.
        """
        check_class_names(names)
        if len(names) != len(self.class_names):
            raise ValueError(f"{len(names)} class names for a model of {len(self.class_names)} classes.")
        if self.folded:
            raise ValueError("The class names of folded text are fixed. Set them before it is folded.")
        encoder, prompts = self.unfolded()
        self.prompts = self._prompts(names, encoder).to(prompts.device)
        self.class_names = tuple(names)

    def train(self, mode: bool = True) -> "PromptedTextEncoder":
        self._kept.forget()
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> "PromptedTextEncoder":
        self._kept.forget()  # not to hold the weights as they were, on a device they have left
        return super()._apply(*args, **kwargs)

    def _text(self) -> Tensor:
        """(1, K, C) embeddings of the names, before the image refines them."""
        if self.text_embeddings is not None:
            if self.training:
                raise ValueError(FOLDED_CANNOT_TRAIN)
            return self.text_embeddings[None]
        encoder, prompts = self.unfolded()
        tensors = [prompts, *encoder.parameters(), *encoder.buffers()]
        if self.contexts is not None:
            tensors.append(self.contexts)
        learned = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if learned or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._encode()
        device = prompts.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return self._kept(self._encode, tensors, autocast)

    def _encode(self) -> Tensor:
        return self._graphed(*self.unfolded(), self.contexts)

    def _refined(self, text: Tensor, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        text = text.expand(global_embedding.shape[0], -1, -1)  # len() would be a constant of a trace
        return text + self.gamma * self.context_decoder(text, global_embedding, dense_embedding)

    def _contexts_from(self, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        queries = self.queries.expand(global_embedding.shape[0], -1, -1)
        return self.context_decoder(queries, global_embedding, dense_embedding)

    def _tokens_of(self, context_init: str) -> list[int]:
        if context_init and self.mode not in ("post", "context"):
            raise ValueError(f"context_init is {context_init!r}, but mode {self.mode!r} learns no contexts.")
        if not context_init or self.text_encoder is None:
            return []
        words = tokenize_names([context_init], tokenizer=self._tokenizer)
        tokens = words[0, self.text_encoder.start : -1].tolist()
        if len(tokens) != self.num_contexts:
            raise ValueError(
                f"MODEL.DENSECLIP.PROMPT.CONTEXT_INIT = {context_init!r} has {len(tokens)} tokens, and "
                f"PROMPT.NUM_CONTEXTS is {self.num_contexts}. Set NUM_CONTEXTS to {len(tokens)}, or "
                "take other words."
            )
        return tokens

    def _check_foldable(self) -> None:
        if self.mode == "pre":
            raise ValueError(
                "MODEL.DENSECLIP.PROMPT.MODE = 'pre' makes the contexts from each image, so that its text "
                "embeddings cannot be folded. Leave --fold-text out, or set PROMPT.FOLDED to False."
            )

    def _prompts(
        self, names: Sequence[str], text_encoder: CLIPTextEncoder, *, any_length: bool = False
    ) -> Tensor:
        # The length is of a name, not of a sentence around it.
        num_contexts, name_length = self.num_contexts, 0 if any_length else self.name_length
        if self.mode == "template":
            names, num_contexts, name_length = [self.template.format(name) for name in names], 0, 0
        prompts = tokenize_names(names, name_length, self._tokenizer)
        check_prompts(prompts, names, num_contexts, text_encoder.vocab_size, text_encoder.context_length)
        return prompts
