"""Weights of a backbone that has no CLIP of its own: ImageNet's, from wherever they are."""

import re
from collections.abc import Iterator

import timm
import torchvision
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..visual import EmbeddedBackbone, TimmBackbone
from ..visual.timm_backbone import TIMM_WEIGHTS
from .clip import names_under, prefix_of
from .readers import read_weights
from .report import first

KEY = "MODEL.DENSECLIP.VISUAL.WEIGHTS"
TORCHVISION = "torchvision://"
_CLASSIFIER = ("fc.", "stem.fc.")
_COPY = "Copy the file here from a machine with a network, and set the key to its path."

# EfficientNet's layers, as its first port to PyTorch calls them, in timm's names; of a block, by whether it
# expands.
_EFFICIENTNET = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}  # fmt: skip
_BLOCK = {
    True: {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
    False: {
        "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_se_reduce": "se.conv_reduce",
        "_se_expand": "se.conv_expand", "_project_conv": "conv_pw", "_bn2": "bn2",
    },
}  # fmt: skip


def _with_weights(model: nn.Module) -> tuple[str, EmbeddedBackbone] | None:
    """A backbone without a CLIP that has weights to begin from, and how the names of its parameters begin."""
    prefix = prefix_of(model, EmbeddedBackbone)
    visual = None if prefix is None else model.get_submodule(prefix.removesuffix("."))
    if not isinstance(visual, EmbeddedBackbone) or not visual.weights:
        return None
    return f"{prefix}backbone.", visual


def names_of_backbone(model: nn.Module) -> list[str]:
    """The model's tensors that :func:`read_backbone` has to give; none where there is nothing to read."""
    found = _with_weights(model)
    return names_under(model, found[0]) if found else []


def read_backbone(model: nn.Module) -> dict[str, Tensor]:
    """What the model's backbone begins from, under the model's names; empty where there is no such thing.

    Weights are a file or a link, Detectron2's ``detectron2://ImageNetPretrained/MSRA/R-50.pkl`` say; or
    ``timm://resnet50.a1_in1k``, timm's for a model and tag; or
    ``torchvision://ResNet50_Weights.IMAGENET1K_V2``. Files have the backbone's own names, Caffe2's,
    torchvision's or, for timm's EfficientNets, those of the first port to PyTorch. A classifier is left out.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        ValueError: it is damaged, or holds code, or there are no weights of this name, or none fit.
    """
    found = _with_weights(model)
    if found is None:
        return {}
    prefix, visual = found
    backbone, path = visual.backbone, visual.weights
    state = backbone.state_dict()

    def count_fitting(weights: dict[str, Tensor]) -> int:
        return len(_renamed(weights, backbone).keys() & state.keys())

    if path.startswith(TIMM_WEIGHTS):
        checkpoint: dict = {"model": _of_timm(path)}
    else:
        checkpoint = read_weights(_local(path), count_fitting)
    weights = in_file = checkpoint["model"]
    if checkpoint.get("matching_heuristics") and not _is_torchvisions(weights, state):
        caffe2 = checkpoint.get("__author__") == "Caffe2"
        weights = align_and_update_state_dicts(state, weights, c2_conversion=caffe2)
    weights = _renamed(weights, backbone)
    if weights.keys().isdisjoint(state):
        raise ValueError(
            f"{KEY} = {path!r} holds nothing of {type(backbone).__name__}: its first names are "
            f"{first(in_file, 3)}; those of the backbone, {first(state, 3)}. Give weights of this backbone."
        )
    return {prefix + name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIER)}


def _is_torchvisions(weights: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether weights have torchvision's names of a ResNet, and the backbone Detectron2's."""
    return "layer1.0.conv1.weight" in weights and "stem.conv1.weight" in state


def _renamed(weights: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return weights under the names that they have in the backbone, less what it leaves out."""
    if _is_torchvisions(weights, backbone.state_dict()):
        return {_of_torchvision(name): tensor for name, tensor in weights.items()}
    if not isinstance(backbone, TimmBackbone):
        return weights
    if "_conv_stem.weight" in weights:
        weights = dict(efficientnet_names(weights, backbone.trunk))
    named = {f"trunk.{name}": tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in named.items() if name not in backbone.left_out}


def _local(path: str) -> str:
    try:
        if path.startswith(TORCHVISION):
            path = _link_of_torchvision(path)
        local = PathManager.get_local_path(path)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{KEY} = {path!r} could not be downloaded ({error}). {_COPY}") from error
    if not PathManager.isfile(local):
        raise FileNotFoundError(f"{KEY} = {path!r}: there is no such file.")
    return local


def _link_of_torchvision(path: str) -> str:
    try:
        return torchvision.models.get_weight(path.removeprefix(TORCHVISION)).url
    except (ValueError, AttributeError, KeyError) as error:  # how it refuses a class, or a name of it
        raise ValueError(f"{KEY} = {path!r}: torchvision has no such weights.") from error


def _of_timm(path: str) -> dict[str, Tensor]:
    name = path.removeprefix(TIMM_WEIGHTS)
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if name not in tags:
        raise ValueError(f"{KEY} = {path!r}: timm has no such weights. It has: {', '.join(tags) or 'none'}.")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{KEY} = {path!r} could not be downloaded ({error}). {_COPY}") from error


def _of_torchvision(name: str) -> str:
    """A tensor of torchvision's ResNets, as Detectron2 calls it."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def efficientnet_names(weights: dict[str, Tensor], model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of EfficientNet's first port to PyTorch, under the names that they have in timm's.

    Args:
        model: timm's.
    """
    stages = enumerate(model.get_submodule("blocks").children())
    places = [f"blocks.{i}.{j}" for i, stage in stages for j, _ in enumerate(stage.children())]
    for name, tensor in weights.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name):
            number, layer, kind = match.groups()
            layers = _BLOCK[f"_blocks.{number}._expand_conv.weight" in weights]
            yield f"{places[int(number)]}.{layers[layer]}.{kind}", tensor
        else:
            layer, kind = name.split(".")
            yield f"{_EFFICIENTNET[layer]}.{kind}", tensor
