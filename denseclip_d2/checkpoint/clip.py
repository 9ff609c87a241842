"""CLIP's own weights: where they belong in a model, and which GELU they were trained with."""

import sys
from math import isqrt
from types import UnionType

from torch import Tensor, nn

from ..language import NameTable, TextEncoder
from ..visual import CLIPTimm, ProjectedBackbone, VisualEncoder
from ..visual.attention_pool import resize_positional_embedding
from ..visual.vit_pyramid import LEVELS

# Parts of a CLIP model that dense prediction does not use.
_OPENAI_ONLY = {"input_resolution", "context_length", "vocab_size"}
_POSITION_IDS = "text.transformer.embeddings.position_ids"  # no longer a part of transformers' RoBERTa
_CLIP_ONLY = {*_OPENAI_ONLY, "logit_scale", "logit_bias", "attn_mask", "text.attn_mask", _POSITION_IDS}
_COCA_ONLY = "text_decoder."
_TEXT = TextEncoder | NameTable
# Layers from features to embeddings, which a model without language does not have.
_EMBEDDING = ("visual.attnpool.", "visual.ln_post.", "visual.proj", "visual.head.")


def is_clip(weights: dict[str, Tensor]) -> bool:
    """Return whether weights have the names of a CLIP model."""
    first_layers = ("visual.conv1.weight", "visual.patch_embed.proj.weight")  # the latter is EVA-CLIP's
    return any(name in first_layers or name.startswith("visual.trunk.") for name in weights)


def exported_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model that is a CLIP alone (``WithoutTraining``) under open_clip's names.

    Args:
        weights: any; those of other models are returned as they are.
    """
    places = {"backbone.visual.": "visual.", "backbone.language.text_encoder.": "text."}
    renamed = {
        theirs + name.removeprefix(ours): tensor
        for name, tensor in weights.items()
        for ours, theirs in places.items()
        if name.startswith(ours)
    }
    return renamed if len(renamed) == len(weights) else weights


def is_openai_clip(weights: dict[str, Tensor]) -> bool:
    """Return whether weights are OpenAI's: only their state dicts hold three certain numbers."""
    return is_clip(weights) and weights.keys() >= _OPENAI_ONLY


def with_timm_names(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights with open_clip's names, ``visual.trunk``, if they are of a release that timm reads.

    Such are timm's own files of a visual encoder, EVA-CLIP's release and what was trained from it (CLIPSelf,
    DeCLIP), and TIPSv2's.

    Args:
        weights: any.
    """
    visual = _visual_encoder(model)
    if not isinstance(visual, CLIPTimm):
        return weights
    trunk, own = visual.trunk, visual.trunk.state_dict().keys()
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    bare = {name.removeprefix("visual.").removeprefix("vision_encoder.") for name in weights}
    if convert is None or bare.isdisjoint(own):
        return weights
    others = {n: t for n, t in weights.items() if n.startswith(("text.", "logit_"))}
    return {f"visual.trunk.{name}": tensor for name, tensor in convert(weights, trunk).items()} | others


def prefix_of(model: nn.Module, kind: type | UnionType) -> str | None:
    """Return the prefix of the parameters in a model's first module of a kind; None without such a module."""
    names = [name for name, module in model.named_modules() if isinstance(module, kind)]
    return (f"{names[0]}." if names[0] else "") if names else None


def names_under(model: nn.Module, *prefixes: str | None) -> list[str]:
    """Return the names of the model's tensors with these prefixes, without the pyramid of a ViT."""
    places = tuple(prefix for prefix in prefixes if prefix is not None)
    pyramids = tuple(f"{place}{level}." for place in places for level in LEVELS.values())
    return [n for n in model.state_dict() if n.startswith(places) and not n.startswith(pyramids)]


def _visual_encoder(model: nn.Module) -> VisualEncoder | None:
    return next((module for module in model.modules() if isinstance(module, VisualEncoder)), None)


def names_in_clip(model: nn.Module) -> list[str]:
    """Return the names of the model's tensors that CLIP's weights have."""
    return names_under(model, _prefix_of_clips_visual(model), prefix_of(model, _TEXT))


def rename_clip(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return CLIP's weights under the names of ``model``, without those that it does not use."""
    visual, text = _prefix_of_clips_visual(model), prefix_of(model, _TEXT)
    left_out = {f"visual.{name}" for name in getattr(_visual_encoder(model), "left_out", ())}
    renamed = {}
    for name, tensor in weights.items():
        prefix = visual if name.startswith("visual.") else text
        unused = name in _CLIP_ONLY or name in left_out or name.startswith(_COCA_ONLY)
        unused = unused or (text is None and name.startswith(_EMBEDDING))
        if prefix is not None and not unused:
            # open_clip's newer models keep the text encoder under ``text``, OpenAI's at the top.
            renamed[prefix + name.removeprefix("visual.").removeprefix("text.")] = tensor
    return renamed


def _prefix_of_clips_visual(model: nn.Module) -> str | None:
    """Return the prefix of a CLIP's visual encoder; None if the model has another backbone."""
    other = isinstance(_visual_encoder(model), ProjectedBackbone)
    return None if other else prefix_of(model, VisualEncoder)


def resize_positions(weights: dict[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Resize, in place, the visual encoder's positional embedding to the grid of ``model``.

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
        return {}  # no square grid; the error of another shape follows
    weights[name] = resize_positional_embedding(weights[name], side)
    return {name: f"from {before} to {side * side} positions, bilinearly"}


def check_gelu(model: nn.Module, path: str, quick_gelu: bool, key: str = "MODEL.WEIGHTS") -> None:
    """Check that a model has the GELU that its weights were trained with: the other gives wrong outputs.

    Args:
        key: the config key that names the weights.

    Raises:
        ValueError: the model has the other GELU.
    """
    for module in model.modules():
        if getattr(module, "quick_gelu", quick_gelu) != quick_gelu:
            needed, has = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
            raise ValueError(
                f"{key} = {path!r} was trained with {needed}, and the model has {has}. Set "
                "MODEL.DENSECLIP.CLIP_MODEL to the architecture "
                f"{'with' if quick_gelu else 'without'} '-quickgelu' at its end."
            )
