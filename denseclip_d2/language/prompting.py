from collections.abc import Sequence

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ..clip_models import get_clip_architecture
from ..data.tasks import learns_a_name
from .build import TextEncoder
from .context_decoder import ContextDecoder
from .learned_embedding import LearnedEmbedding
from .prompts import check_class_names
from .sentences import SentenceReader
from .step_names import StepNameEncoder
from .text_encoder import PACK_TOKENS

PRECOMPUTED_CANNOT_TRAIN = (
    "A model with precomputed text embeddings has no contexts to train. Set "
    "MODEL.DENSECLIP.PROMPT.PRECOMPUTED to False. Train from weights with a text encoder, or set "
    "MODEL.DENSECLIP.TEXT_WEIGHTS to those of a CLIP."
)


class PromptedTextEncoder(StepNameEncoder):
    """Class names to text embeddings, by context-aware prompting (paper, sec. 3.3).

    Modes: "post", learned contexts whose embeddings the image refines: t + gamma * decoder(t, image);
    "pre", contexts that a decoder makes from the image; "context", learned contexts alone (CoOp);
    "template", a fixed sentence and nothing learned; "random", a fixed random vector for each name
    (:func:`.random_text`), which an experiment compares the others with.

    Training computes the text in every forward pass, of all names or of some (:meth:`names_of_step`).
    Inference computes the text once: see :meth:`precompute_` and :func:`.precomputed_text`. The buffer
    ``text_embeddings`` (K, C) holds the result. The buffer is in the state dict if the model has no text
    encoder.
    """

    text_embeddings: Tensor | None
    contexts: nn.Parameter | None

    @configurable
    def __init__(
        self,
        *,
        class_names: Sequence[str],
        text_encoder: TextEncoder | None,
        sentences: SentenceReader | None,
        stuff_names: Sequence[str] = (),
        embed_dim: int = 0,
        mode: str = "post",
        vocabulary: Sequence[str] = (),
        context_init: str = "",
        context_std: float = 1.0,
        learned_name: str = "",
        cuda_graph: bool = True,
        names_per_step: int = 0,
        head_names_per_step: int = 0,
        pack_tokens: int = PACK_TOKENS["cpu"],
        decoder_width: int = 256,
        decoder_heads: int = 4,
        decoder_layers: int = 3,
        decoder_dropout: float = 0.1,
    ):
        """
        Args:
            class_names: K names, in order of the class ids. Synonyms, "sofa|couch", share their mean.
            text_encoder: None builds a model whose ``text_embeddings`` (K, ``embed_dim``) are to be loaded.
            sentences: reads names for the text encoder, which needs one. Its ``n_ctx`` contexts are learned.
            stuff_names: of a panoptic model, which reads them after the K names of things.
            vocabulary: names of which :meth:`precompute_` keeps the embeddings, in mode "template".
            context_init: words that contexts begin from, ``n_ctx`` tokens; empty: random, of ``context_std``.
            learned_name: a class name whose embedding is learned instead of read, such as "background".
            cuda_graph, names_per_step, head_names_per_step: see :class:`StepNameEncoder` and its bases.
            pack_tokens: tokens that the text encoder reads as one sequence.

        Raises:
            ValueError: names that cannot be read; a mode that is unknown or that arguments do not fit.
        """
        super().__init__(
            class_names, stuff_names, text_encoder, sentences, mode=mode, vocabulary=vocabulary,
            pack_tokens=pack_tokens, cuda_graph=cuda_graph,
            names_per_step=names_per_step, head_names_per_step=head_names_per_step,
        )  # fmt: skip
        self.register_buffer("text_embeddings", None)
        if text_encoder is None:
            self._check_precomputable()
            self.text_embeddings = torch.randn(len(self.names), embed_dim)
        self._make_contexts(context_init, context_std)
        self.embed_dim = embed_dim if text_encoder is None else text_encoder.output_dim
        self.learned = LearnedEmbedding(learned_name, self.embed_dim) if learned_name else None
        self._make_decoder(self.embed_dim, decoder_width, decoder_heads, decoder_layers, decoder_dropout)

    @classmethod
    def from_config(cls, cfg, class_names: Sequence[str]):
        prompt, context_decoder = cfg.MODEL.DENSECLIP.PROMPT, cfg.MODEL.DENSECLIP.CONTEXT_DECODER
        return {
            **super().from_config(cfg, class_names),
            "embed_dim": get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL).embed_dim,
            "mode": prompt.MODE,
            "context_init": prompt.CONTEXT_INIT,
            "context_std": prompt.CONTEXT_STD,
            "learned_name": prompt.LEARNED_NAME if learns_a_name(cfg) else "",
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
        Returns: (B, K, C) text embeddings of :attr:`names`; (1, K, C) in the modes that do not look at the
            image.
        Raises:
            ValueError: training mode without a text encoder.
        """
        if self.mode == "pre":
            text = self.encode_class_names(self._contexts_from(global_embedding, dense_embedding))
        else:
            text = self._text()
        if self.mode == "post":
            text = self._refined(text, global_embedding, dense_embedding)
        return self.learned(text, self.names) if self.learned else text

    @torch.no_grad()
    def embed(self, names: Sequence[str], global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        """Return text embeddings of any names, as the image refines them beside the model's class names.

        Args:
            names: n names of any length, classes of the model or not.
            global_embedding, dense_embedding: as for :meth:`forward`.
        Returns: (B or 1, n, C).
        Raises:
            ValueError: names that :func:`check_class_names` refuses or that are too long; no text encoder.
        """
        if self.mode == "pre":
            return self.encode_names(names, self._contexts_from(global_embedding, dense_embedding))
        text = self.encode_names(names, self.contexts)
        if self.mode != "post":
            return text
        # The queries attend to one another, and in training the class names were beside them.
        text = torch.cat([self._text(), text], dim=1)
        return self._refined(text, global_embedding, dense_embedding)[:, -len(names) :]

    @torch.no_grad()
    def init_contexts(self) -> None:
        """Set the contexts to the token embeddings of the words of ``context_init``, if any.

        Call this method after loading a text encoder without contexts.
        """
        if self._context_tokens and self.contexts is not None:
            encoder, prompts = self.encoder_and_prompts()
            tokens = torch.tensor(self._context_tokens, device=prompts.device)
            self.contexts.copy_(encoder.token_embedding(tokens))

    @property
    def precomputed(self) -> bool:
        """Return whether ``text_embeddings`` replace the text encoder and the contexts."""
        return self.text_encoder is None

    def set_class_names(
        self,
        names: Sequence[str],
        text_embeddings: Tensor | None = None,
        *,
        stuff_names: Sequence[str] | None = None,
    ) -> None:
        """Read other names, of any number, in place of the class names.

        Args:
            text_embeddings: (K, C), of names and then stuff, from :meth:`encode_names`; None: to be computed.
            stuff_names: names of the stuff of a panoptic model; None: those before.

        Raises:
            ValueError: see :meth:`read`; names of stuff for a model without, or none for a model
                with. The names are then those of before.
        """
        stuff_names = self.stuff_names if stuff_names is None else tuple(stuff_names)
        if stuff_names and not self.stuff_names:
            raise ValueError("This model labels no stuff: it takes names of classes alone.")
        if self.stuff_names and not stuff_names:
            raise ValueError("This model labels stuff. Give at least one name of stuff.")
        if text_embeddings is not None:
            self.restore(names, stuff_names, text_embeddings)
            return
        check_class_names(names)
        layout = self.read([*names, *stuff_names])
        self.class_names, self.stuff_names = tuple(names), stuff_names
        self._lay_out(*layout)
        if self.text_embeddings is not None:
            self.precompute_(keep_encoder=True)

    def restore(
        self, names: Sequence[str], stuff_names: Sequence[str], text_embeddings: Tensor | None
    ) -> None:
        """Set names that were read before, and their text embeddings (K, C) or None, without any check."""
        self.class_names, self.stuff_names = tuple(names), tuple(stuff_names)
        self.register_buffer("text_embeddings", text_embeddings, persistent=False)

    def precompute_(self, *, keep_encoder: bool = False) -> "PromptedTextEncoder":
        """Compute the text embeddings once, for inference with the same outputs.

        ``MODEL.DENSECLIP.PROMPT.PRECOMPUTED`` builds a model that loads weights without a text encoder.

        Args:
            keep_encoder: keep text encoder, contexts and state dict, for :meth:`embed`. Call this method
                again after a change of weights. Mode "pre" is left as it is.

        Raises:
            ValueError: mode "pre" without ``keep_encoder``.
        """
        if not keep_encoder:
            self._check_precomputable()
        if not self.precomputed and self.mode != "pre":
            embeddings = self.encode_all()
            self.register_buffer("text_embeddings", embeddings, persistent=not keep_encoder)
        if self.vocabulary and not keep_encoder:
            self.keep_vocabulary()
            self.restore(self.class_names, self.stuff_names, self.text_embeddings)
        elif not keep_encoder:
            self.text_encoder = self.contexts = self.prompts = self.packs = None
        return self

    def _text(self) -> Tensor:
        """Return (1, K, C) embeddings of the names, before the image refines them."""
        if self.training and self.precomputed:
            raise ValueError(PRECOMPUTED_CANNOT_TRAIN)
        if self.step_names is not None:
            return self.encode_step_names()
        if self.training or self.text_embeddings is None:
            return self.encode_class_names(self.contexts)
        return self.text_embeddings[None]

    def _refined(self, text: Tensor, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        text = text.expand(global_embedding.shape[0], -1, -1)  # len() would be a constant of a trace
        return text + self.gamma * self.context_decoder(text, global_embedding, dense_embedding)

    def _contexts_from(self, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        queries = self.queries.expand(global_embedding.shape[0], -1, -1)
        return self.context_decoder(queries, global_embedding, dense_embedding)

    def _make_contexts(self, context_init: str, std: float) -> None:
        self.register_parameter("contexts", None)
        self._context_tokens: list[int] = []
        if context_init and self.mode not in ("post", "context"):
            raise ValueError(f"context_init is {context_init!r}, but mode {self.mode!r} learns no contexts.")
        if self.precomputed or self.mode not in ("post", "context"):
            return
        encoder, sentences, _ = self._reader()
        contexts = torch.empty(1, sentences.n_ctx, encoder.width)
        self.contexts = nn.Parameter(nn.init.trunc_normal_(contexts, std=std, a=-2 * std, b=2 * std))
        if context_init:
            self._context_tokens = sentences.tokens_of(context_init)
            if (number := len(self._context_tokens)) != sentences.n_ctx:
                raise ValueError(
                    f"context_init {context_init!r} has {number} tokens, but n_ctx is "
                    f"{sentences.n_ctx}. Set n_ctx to {number}, or use other words."
                )
            self.init_contexts()

    def _make_decoder(self, embed_dim: int, width: int, heads: int, layers: int, dropout: float) -> None:
        if self.mode == "post":
            self.context_decoder = ContextDecoder(embed_dim, width, heads, layers, dropout)
            self.gamma = nn.Parameter(torch.full((embed_dim,), 1e-4))
        if self.mode == "pre":
            encoder, sentences, _ = self._reader()
            self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, sentences.n_ctx, embed_dim)))
            self.context_decoder = ContextDecoder(embed_dim, width, heads, layers, dropout, encoder.width)

    def _check_precomputable(self) -> None:
        if self.mode == "pre":
            raise ValueError(
                "Prompt mode 'pre' makes the contexts from each image: its text embeddings cannot be "
                "precomputed. Omit --precompute-text, or set MODEL.DENSECLIP.PROMPT.PRECOMPUTED to False."
            )
