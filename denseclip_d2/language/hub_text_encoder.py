"""Text encoders of Hugging Face's transformers."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from .. import clip_models
from ..clip_models import CLIPArchitecture
from .text_encoder import encode_parts, insert_contexts, tokens_of_pack
from .tokenizers import Tokenizer

SHAPES = Path(clip_models.__file__).with_name("hub_text_encoders.json")
"""The shapes of encoders by their names on the hub, as each one's ``config.json`` has them."""


class HubTextEncoder(HFTextEncoder):
    """A text encoder of transformers, frozen, with room for context vectors between start token and name.

    Contexts are ``inputs_embeds`` of the encoder. Pooling, projection and the names of parameters are those
    of open_clip's ``HFTextEncoder``. Attention has no mask but that of padding: no prompts share a beginning.
    """

    transformer: Any

    def __init__(
        self,
        config: Any,
        *,
        output_dim: int,
        pooler_type: str = "mean_pooler",
        proj_type: str | None = None,
        context_length: int = 77,
        start: int = 1,
    ):
        """
        Args:
            config: a config of transformers.
            output_dim: C, the width of the text embeddings.
            pooler_type, proj_type: open_clip's. None: no projection.
            context_length: largest number of tokens of a prompt, contexts included.
            start: number of start tokens of the tokenizer, 1 or 0.
        """
        # open_clip knows the name of the width by the kind of model. It does not know this kind.
        arch_dict.setdefault("tipsv2_text_model", arch_dict["roberta"])
        config = deepcopy(config)
        config.decoder_layers = config.num_decoder_layers = 0  # a decoder would be dropped
        super().__init__("", output_dim, config, pooler_type, proj_type)
        if config.is_encoder_decoder:
            self.transformer = self.transformer.encoder
        elif pooler_type != "cls_pooler":
            self.transformer.pooler = None  # as open_clip builds encoders by their names
        self.width, self.context_length, self.start = config.hidden_size, context_length, start
        self.requires_grad_(False).eval()

    @classmethod
    def from_architecture(
        cls, architecture: CLIPArchitecture, tokenizer: Tokenizer | None = None
    ) -> "HubTextEncoder":
        """Build the text encoder of an architecture, with random weights.

        Args:
            tokenizer: decides the number of start tokens; None: 1.

        Raises:
            ImportError: transformers is not installed.
            FileNotFoundError: the shapes are neither in :data:`SHAPES` nor in a folder nor on the hub.
        """
        text = architecture.text
        return cls(
            _config_of(text.hf_model_name or "", architecture.name),
            output_dim=architecture.embed_dim,
            pooler_type=text.hf_pooler_type,
            proj_type=text.hf_proj_type,
            context_length=text.context_length,
            start=tokenizer.start if tokenizer else 1,
        )

    @property
    def token_embedding(self) -> nn.Module:
        """The layer from token ids to what the encoder reads as ``inputs_embeds``."""
        return self.transformer.get_input_embeddings()

    def train(self, mode: bool = True) -> "HubTextEncoder":
        """Stay in evaluation mode: the encoder is frozen, and its dropout would be noise."""
        return super().train(False)

    def pack(self, ids: Tensor, n_ctx: int, max_tokens: int = 0) -> nn.ModuleList:
        """Return an empty list: prompts share no computation."""
        return nn.ModuleList()

    def forward(self, prompts: Tensor | nn.ModuleList, contexts: Tensor | None = None) -> Tensor:
        """
        Args:
            prompts: (K, L) token ids, with start and end tokens and padding.
            contexts: (B, N, D) vectors after the start token of every name; None: no contexts.
        Returns: (B, K, C) text embeddings, B = 1 without contexts.
        """
        assert isinstance(prompts, Tensor)
        length = prompts.shape[1] + (0 if contexts is None else contexts.shape[1])
        parts = prompts.split(max(1, tokens_of_pack(prompts.device) // length))
        return encode_parts(self._encode, parts, contexts)

    def _encode(self, ids: Tensor, contexts: Tensor | None) -> Tensor:
        x, mask = self.token_embedding(ids)[None], (ids != self.config.pad_token_id).long()
        if contexts is not None:
            x = insert_contexts(x, contexts, self.start)
            mask = F.pad(mask, (contexts.shape[1], 0), value=1)  # start tokens and contexts are all read
        mask = mask.repeat(len(x), 1)
        states = self.transformer(inputs_embeds=x.flatten(0, 1), attention_mask=mask)
        return self.proj(self.pooler(states, mask)).unflatten(0, (-1, len(ids)))

    @torch.no_grad()
    def read_release(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return what transformers finds for this encoder in a release, such as TIPSv2's.

        Args:
            weights: under the names of the release, which transformers converts.

        Returns: the tensors that fit, under this module's names; the names of others that are of such an
            encoder, but have no place here or another shape.
        """
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # or the log has a table with each tensor of other parts
        try:
            loaded, report = type(self.transformer).from_pretrained(
                None, config=self.transformer.config, state_dict=dict(weights),
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        finally:
            logging.set_verbosity(verbosity)
        parts = tuple(f"{name}." for name, _ in self.transformer.named_children())
        misshapen = {key[0] for key in report["mismatched_keys"]}
        misfits = misshapen.union(key for key in report["unexpected_keys"] if key.startswith(parts))
        absent = misshapen.union(report["missing_keys"])
        found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in absent}
        return {f"transformer.{name}": tensor for name, tensor in found.items()}, sorted(misfits)


def _config_of(name: str, architecture: str) -> Any:
    """
    Args:
        name: a model of the hub, or a folder with its ``config.json``.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ImportError(
            f"{architecture!r} has the text encoder {name!r} of Hugging Face, which needs a package: "
            "pip install transformers."
        ) from error
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))
    if name in shapes:
        return AutoConfig.for_model(**shapes[name])
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{architecture!r} has the text encoder {name!r}, whose config.json is neither in a folder of "
            "this name nor in the hub's cache (the folder HF_HOME), and could not be downloaded. Put it into "
            "a folder, and set the architecture's hf_model_name to the folder."
        ) from error
