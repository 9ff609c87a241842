"""The architecture of a CLIP by the shapes of its weights."""

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import open_clip
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..clip_models import CLIPArchitecture, get_clip_architecture
from ..visual import encoder_class
from .clip import is_clip, is_openai_clip
from .openclip import PREFIX, parse_openclip_path
from .readers import is_torchscript, read_weights

logger = logging.getLogger(__name__)

GIVE_IT = (
    "Give the architecture by MODEL.DENSECLIP.CLIP_MODEL, in Python by "
    "opts=['MODEL.DENSECLIP.CLIP_MODEL', 'ViT-B-16-quickgelu']."
)


class ClipFacts(NamedTuple):
    """What a CLIP's weights tell: open_clip's name of their architecture, and the temperature, if known."""

    architecture: str
    tau: float | None = None


def facts_of(path: str, architecture: str = "") -> ClipFacts:
    """Return what a CLIP's weights tell.

    Args:
        path: a file, or an address such as ``openclip://ViT-B-16/openai``.
        architecture: the weights' architecture, if it is known. They then tell the temperature alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no CLIP, or one of an unknown architecture.
    """
    if path.startswith(PREFIX):
        if architecture:
            return ClipFacts(architecture)
        name, _, entry = parse_openclip_path(path)
        plain = entry.get("quick_gelu") and not get_clip_architecture(name).quick_gelu
        return ClipFacts(f"{name}-quickgelu" if plain else name)
    local = PathManager.get_local_path(path) if "://" in path else path
    if not PathManager.isfile(local):
        raise FileNotFoundError(f"{path!r}: there is no such file of a CLIP's weights.")
    weights = read_weights(local, lambda weights: int(is_clip(weights)))["model"]
    scale = weights.get("logit_scale")
    tau = None if scale is None else round(math.exp(-scale.item()), 6)
    of_openai = is_torchscript(local) or is_openai_clip(weights)
    return ClipFacts(architecture or _architecture_of(weights, path, of_openai), tau)


def _architecture_of(weights: dict[str, Tensor], path: str, of_openai: bool) -> str:
    if not (is_clip(weights) and _text_sizes(weights)):
        raise ValueError(f"{path!r} does not hold both encoders of a CLIP, as open_clip has them. {GIVE_IT}")
    found = [x.name for x in _fitting(weights) if x.quick_gelu or not of_openai]
    if not found:
        raise ValueError(f"{path!r} has the shapes of no architecture of open_clip. {GIVE_IT}")
    if len(found) > 1:
        logger.warning(
            "%r has the shapes of %s. The first is taken. Shapes do not tell GELU from QuickGELU, which "
            "OpenAI's weights need. %s", path, ", ".join(found), GIVE_IT
        )  # fmt: skip
    return found[0]


def _fitting(weights: dict[str, Tensor]) -> Iterator[CLIPArchitecture]:
    """Yield the architectures whose tensors have the shapes of a CLIP's weights."""
    text, visual = _text_sizes(weights), _shapes(weights, "visual.")
    of_timm = any(name.startswith("trunk.") for name in visual)
    for name in open_clip.list_models():
        try:
            architecture = get_clip_architecture(name)
            own = architecture.text
            sizes = own.vocab_size, own.context_length, own.width, own.layers
            if text == sizes and of_timm == bool(architecture.vision.timm_model_name):
                kind = encoder_class(architecture)
                with torch.device("meta"):
                    encoder = kind(**kind.arguments_of(architecture), **kind.local_cells, norm="BN")
                if _shapes(encoder.state_dict()) == visual:
                    yield architecture
        except ValueError:  # an architecture that cannot be built
            continue


def _text_sizes(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the vocabulary, the positions, the width and the layers of a text encoder."""
    text = {name.removeprefix("text."): x for name, x in weights.items() if not name.startswith("visual.")}
    if not {"token_embedding.weight", "positional_embedding"} <= text.keys():
        return ()
    layers = {name.split(".")[2] for name in text if name.startswith("transformer.resblocks.")}
    vocabulary, width = text["token_embedding.weight"].shape
    return vocabulary, len(text["positional_embedding"]), width, len(layers)


def _shapes(weights: dict[str, Tensor], prefix: str = "") -> dict[str, torch.Size]:
    return {
        name.removeprefix(prefix): tensor.shape
        for name, tensor in weights.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
