"""CLIP's own weights: where they belong in a model, and which GELU they were trained with."""

from math import isqrt
from types import UnionType

from torch import Tensor, nn

from ..language import PromptedTextEncoder
from ..language.text_encoder import CLIPTextEncoder
from ..visual import EmbeddedBackbone, VisualEncoder
from ..visual.attention_pool import resize_positional_embedding
from ..visual.vit_pyramid import LEVELS

# Of a CLIP model, but of no use to dense prediction.
_OPENAI_ONLY = {"input_resolution", "context_length", "vocab_size"}
_CLIP_ONLY = {*_OPENAI_ONLY, "logit_scale", "logit_bias", "attn_mask", "text.attn_mask"}
# What makes embeddings of features, which a model without language has not.
_EMBEDDING = ("visual.attnpool.", "visual.ln_post.", "visual.proj", "visual.head.")


def is_clip(weights: dict[str, Tensor]) -> bool:
    """Whether weights carry the names of a CLIP model."""
    return any(name == "visual.conv1.weight" or name.startswith("visual.trunk.") for name in weights)


def is_openai_clip(weights: dict[str, Tensor]) -> bool:
    """Whether they are OpenAI's, whose state dicts hold three numbers that no other's do."""
    return is_clip(weights) and weights.keys() >= _OPENAI_ONLY


def prefix_of(model: nn.Module, kind: type | UnionType) -> str | None:
    """Where a model keeps its (first) module of a kind: the beginning of its parameters' names."""
    names = [name for name, module in model.named_modules() if isinstance(module, kind)]
    return (f"{names[0]}." if names[0] else "") if names else None


def names_under(model: nn.Module, *prefixes: str | None) -> list[str]:
    """The model's tensors below these places, less a ViT's pyramid; None is no place."""
    places = tuple(prefix for prefix in prefixes if prefix is not None)
    pyramids = tuple(f"{place}{level}." for place in places for level in LEVELS.values())
    return [n for n in model.state_dict() if n.startswith(places) and not n.startswith(pyramids)]


def _visual_encoder(model: nn.Module) -> VisualEncoder | None:
    return next((module for module in model.modules() if isinstance(module, VisualEncoder)), None)


def names_in_clip(model: nn.Module) -> list[str]:
    """The model's tensors that CLIP's weights have: those of its encoders, less a ViT's pyramid."""
    return names_under(model, _prefix_of_clips_visual(model), prefix_of(model, CLIPTextEncoder))


def rename_clip(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """CLIP's weights under the names they have in ``model``, less what it has no use for."""
    visual, text = _prefix_of_clips_visual(model), prefix_of(model, CLIPTextEncoder)
    left_out = {f"visual.{name}" for name in getattr(_visual_encoder(model), "left_out", ())}
    renamed = {}
    for name, tensor in weights.items():
        prefix = visual if name.startswith("visual.") else text
        unused = name in _CLIP_ONLY or name in left_out or (text is None and name.startswith(_EMBEDDING))
        if prefix is not None and not unused:
            # open_clip's newer models keep the text encoder as ``text``, OpenAI's at the top.
            renamed[prefix + name.removeprefix("visual.").removeprefix("text.")] = tensor
    return renamed


def _prefix_of_clips_visual(model: nn.Module) -> str | None:
    """Where the model keeps a CLIP's visual encoder; None where it has another backbone, or none."""
    other = isinstance(_visual_encoder(model), EmbeddedBackbone)
    return None if other else prefix_of(model, VisualEncoder)


def resize_positions(weights: dict[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Resize, in place, the visual encoder's positional embedding to the grid that ``model`` keeps.

    Returns: what was done, by name.
    """
    prefix, visual = prefix_of(model, VisualEncoder), _visual_encoder(model)
    if visual is None:
        return {}
    name, side = f"{prefix}{visual.position_key}", visual.grid_size
    if name not in weights or weights[name].dim() != 2 or len(weights[name]) == 1 + side * side:
        return {}
    before = len(weights[name]) - 1
    if before < 1 or isqrt(before) ** 2 != before:
        return {}  # no square grid: of another shape, as will be said
    weights[name] = resize_positional_embedding(weights[name], side)
    return {name: f"from {before} to {side * side} positions, bilinearly"}


def begin_contexts(model: nn.Module) -> None:
    """Let learned contexts begin from words as CLIP embeds them, once its weights are there."""
    for module in model.modules():
        if isinstance(module, PromptedTextEncoder):
            module.begin_contexts()


def check_gelu(model: nn.Module, path: str, quick_gelu: bool, key: str = "MODEL.WEIGHTS") -> None:
    """See that a model has the GELU its weights were trained with: with the other they run, and are wrong.

    Args:
        key: the config key that names the weights.

    Raises:
        ValueError: it has the other.
    """
    for module in model.modules():
        if getattr(module, "quick_gelu", quick_gelu) != quick_gelu:
            needed, has = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
            raise ValueError(
                f"{key} = {path!r} was trained with {needed}, and the model has {has}. Set "
                "MODEL.DENSECLIP.CLIP_MODEL to the architecture "
                f"{'with' if quick_gelu else 'without'} '-quickgelu' at its end."
            )
