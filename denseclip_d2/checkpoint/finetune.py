"""Fine-tuning: training on other classes from the weights of a trained detector or segmentor."""

import math
from fnmatch import fnmatch

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..guidance import TextClassifier, guidance_of
from ..language import HubTextEncoder
from .clip import check_gelu, is_clip, is_openai_clip, rename_clip
from .load_report import first
from .openclip import PREFIX, parse_openclip_path
from .readers import is_torchscript, read_weights
from .safetensors_header import names_in_header

# Tensors of layers that tell classes apart, with the number of rows of class-agnostic layers. Infinity:
# layers that read scores of classes; only their width shows the number of classes.
_DEPENDENT = {
    "*cls_score.*": 0,
    "roi_heads.box_predictor*bbox_pred.*": 4,
    "roi_heads.mask_head.predictor.*": 1,
    "roi_heads.mask_head.coarse_head.prediction.*": 1,
    "roi_heads.mask_head.point_head.predictor.*": 1,
    "*point_head.fc*": math.inf,
    "sem_seg_head.predictor.*": 0,
    "sem_seg_head.coarse_sem_seg_head.predictor.*": 0,
    "sem_seg_head.point_head.predictor.*": 0,
    "backbone.fpn.simfp_*": math.inf,
}
_LANGUAGE = "backbone.language."
TEXT_ENCODER = f"{_LANGUAGE}text_encoder."
"""How the names of the text encoder's tensors begin."""
_TEXT_KEY = "MODEL.DENSECLIP.TEXT_WEIGHTS"


def load_for_new_classes(
    weights: dict[str, Tensor], model: nn.Module, path: str
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Return the weights of a model of other classes that do not depend on the classes.

    The classes are others if the header of exported weights has other names, or if the layers that depend on
    them have other shapes. Files without names and with as many classes count as files of the same classes.

    Args:
        weights: under the names of ``model``.
        path: the file of the weights.

    Returns: the weights without layers that tell classes apart; for convolutions that read the score map,
        what was done, by name: visual input channels are kept, those of the scores are the model's; the
        names of tensors that stay new.
    """
    state = model.state_dict()
    misshapen = {name for name in state if name in weights and weights[name].shape != state[name].shape}
    guided, names, rows_of = guidance_of(model), names_in_header(path), _rows_of(model)
    renamed = bool(guided and names and names != list(guided.language.class_names))
    new, kept, merged = [], dict(weights), {}
    visual = _visual_channels(model)
    for name in filter(weights.__contains__, state):
        ours, theirs = state[name], weights[name]
        if not (renamed or name in misshapen):
            continue
        if visual and _reads_scores(name, ours, theirs, *visual):
            channels = visual[0]
            kept[name] = torch.cat([theirs[:, :channels], ours[:, channels:].to(theirs)], dim=1)
            merged[name] = (
                f"{channels} visual channels kept, those of the scores of {visual[1]} classes new, "
                f"in place of {theirs.shape[1] - channels}"
            )
        elif any(
            fnmatch(name, pattern) and (name in misshapen or len(ours) > rows)
            for pattern, rows in rows_of.items()
        ):
            del kept[name]
            new.append(name)
    return kept, merged, new


def with_text_encoder(
    weights: dict[str, Tensor], model: nn.Module, path: str, source: str, *, for_training: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Add the text encoder of a CLIP to weights without one. Training does not change a text encoder.

    Args:
        weights: under the names of ``model``.
        path: the file of the weights.
        source: a CLIP's weights, which have the text encoder; empty: none.
        for_training: also replace precomputed text embeddings.

    Returns: the weights, unchanged if they need no text encoder or there is no source; the names of tensors
        that stay new.
    Raises:
        ValueError: there is no source for weights to train from, or it has another text encoder.
    """
    guided = guidance_of(model)
    if guided is None or guided.language.precomputed or any(x.startswith(TEXT_ENCODER) for x in weights):
        return weights, []
    precomputed = f"{_LANGUAGE}text_embeddings" in weights
    if (precomputed and not for_training) or not (precomputed or source):
        return weights, []
    if not source:
        raise ValueError(
            f"{path!r} has precomputed text embeddings and no text encoder to train with. Set {_TEXT_KEY} to "
            "the weights of the CLIP that its training began from: denseclip://Shapes/clip_tiny for models "
            "of the zoo."
        )
    text = _read_text_encoder(source, model)
    weights = {name: t for name, t in weights.items() if name != f"{_LANGUAGE}text_embeddings"}
    return {**weights, **text}, [f"{_LANGUAGE}contexts"] if precomputed else []


def complete_clip(weights: dict[str, Tensor], model: nn.Module, path: str, source: str) -> dict[str, Tensor]:
    """Add a text encoder to the weights of a CLIP that have a visual encoder alone.

    Args:
        weights: under the names of ``model``.
        path: the file of the weights.
        source: weights that have the text encoder.

    Returns: the weights, unchanged if they have a text encoder or the model needs none.
    Raises:
        ValueError: there is no source, or it has another text encoder.
    """
    guided = guidance_of(model)
    if (
        guided is None
        or guided.language.precomputed
        or any(name.startswith(TEXT_ENCODER) for name in weights)
    ):
        return weights
    if not source:
        raise ValueError(
            f"MODEL.WEIGHTS = {path!r} has the visual encoder of a CLIP alone. Set {_TEXT_KEY} to weights "
            "with the text encoder: for CLIPSelf's and DeCLIP's, those of the CLIP that they began from."
        )
    return {**weights, **_read_text_encoder(source, model)}


def _read_text_encoder(source: str, model: nn.Module) -> dict[str, Tensor]:
    """
    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not hold this text encoder.
    """
    if source.startswith(PREFIX):
        check_gelu(model, source, parse_openclip_path(source)[2].get("quick_gelu", False), key=_TEXT_KEY)
    encoder = model.get_submodule(TEXT_ENCODER.removesuffix("."))
    needed = {name for name in model.state_dict() if name.startswith(TEXT_ENCODER)}

    def text_in(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        clip = rename_clip(weights, model) if is_clip(weights) else {}
        return {name: tensor for name, tensor in clip.items() if name.startswith(TEXT_ENCODER)}

    local = PathManager.get_local_path(source)
    if not PathManager.isfile(local):
        raise FileNotFoundError(f"{_TEXT_KEY} = {source!r}: there is no such file.")
    weights = read_weights(local, lambda weights: len(text_in(weights)))["model"]
    if is_torchscript(local) or is_openai_clip(weights):
        check_gelu(model, source, quick_gelu=True, key=_TEXT_KEY)
    text, misfits = text_in(weights), list[str]()
    if not is_clip(weights) and isinstance(encoder, HubTextEncoder):
        released, misfits = encoder.read_release(weights)
        text = {f"{TEXT_ENCODER}{name}": tensor for name, tensor in released.items()}
    if misfits:
        raise ValueError(
            f"{_TEXT_KEY} = {source!r} has another text encoder than this model's CLIP: {len(misfits)} "
            f"tensors have no place or another shape, such as {first(misfits, 3)}."
        )
    if missing := needed - text.keys():
        raise ValueError(
            f"{_TEXT_KEY} = {source!r} lacks the text encoder of this model's CLIP: {len(missing)} of "
            f"{len(needed)} tensors are missing, such as {first(sorted(missing), 3)}."
        )
    return text


def _rows_of(model: nn.Module) -> dict[str, float]:
    """Return :data:`_DEPENDENT` for a model. The layers of heads that classify by text depend on no class."""
    if not any(isinstance(module, TextClassifier) for module in model.modules()):
        return _DEPENDENT
    return {**dict.fromkeys(_DEPENDENT, math.inf), "*.name_bias.bias": 0}


def _visual_channels(model: nn.Module) -> tuple[int, int] | None:
    """Return the visual channels and score channels of the guided level; None if no level has scores."""
    guided = guidance_of(model)
    if guided is None or guided.concat != "scores":
        return None
    classes = len(guided.language.names)
    return guided.guided_shapes[guided.level].channels - classes, classes


def _reads_scores(name: str, ours: Tensor, theirs: Tensor, channels: int, classes: int) -> bool:
    """Return whether a tensor is a convolution of the guided level, in both models."""
    return (
        not name.startswith((_LANGUAGE, "backbone.visual."))
        and ours.dim() == theirs.dim() == 4
        and ours.shape[1] == channels + classes
        and theirs.shape[1] > channels
        and ours[:, 0].shape == theirs[:, 0].shape
    )
