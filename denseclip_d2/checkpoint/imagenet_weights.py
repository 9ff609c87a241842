"""Pretrained weights, such as ImageNet's, of a backbone that is no CLIP's."""

import re

import timm
import torchvision
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..visual import ProjectedBackbone, TimmBackbone
from ..visual.timm_backbone import TIMM_WEIGHTS
from .clip import names_under, prefix_of
from .load_report import first
from .readers import read_weights

KEY = "MODEL.DENSECLIP.VISUAL.WEIGHTS"
TORCHVISION = "torchvision://"
_CLASSIFIER = ("fc.", "stem.fc.")
_COPY = "Copy the file here from a machine with a network, and set the key to its path."


def _prefix(model: nn.Module) -> str | None:
    """Return the prefix of the parameters of a backbone that is no CLIP's; None without such a backbone."""
    prefix = prefix_of(model, ProjectedBackbone)
    return None if prefix is None else f"{prefix}backbone."


def names_of_backbone(model: nn.Module) -> list[str]:
    """Return the names of the model's tensors that :func:`read_backbone` has to give."""
    prefix = _prefix(model)
    return [] if prefix is None else names_under(model, prefix)


def read_backbone(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Read the pretrained weights of the model's backbone, under the model's names.

    Files have the backbone's own names, Caffe2's, torchvision's, or those of the first port of EfficientNet
    to PyTorch. A classifier is left out.

    Args:
        path: a file or link, such as ``detectron2://ImageNetPretrained/MSRA/R-50.pkl``; timm's weights by
            model and tag, ``timm://resnet50.a1_in1k``; ``torchvision://ResNet50_Weights.IMAGENET1K_V2``.

    Returns: empty if the backbone is a CLIP's, or there is no path.
    Raises:
        FileNotFoundError: the file does not exist, or cannot be downloaded.
        ValueError: the file is damaged or contains code, there are no weights of this name, or none fit.
    """
    prefix = _prefix(model)
    if prefix is None or not path:
        return {}
    backbone = model.get_submodule(prefix.removesuffix("."))
    state = backbone.state_dict()

    def count_fitting(weights: dict[str, Tensor]) -> int:
        return len(_renamed(weights, backbone).keys() & state.keys())

    if path.startswith(TIMM_WEIGHTS):
        checkpoint: dict = {"model": _from_timm(path)}
    else:
        checkpoint = read_weights(_local(path), count_fitting)
    weights = in_file = checkpoint["model"]
    if checkpoint.get("matching_heuristics") and not _is_torchvisions(weights, state):
        caffe2 = checkpoint.get("__author__") == "Caffe2"
        weights = align_and_update_state_dicts(state, weights, c2_conversion=caffe2)
    weights = _renamed(weights, backbone)
    if weights.keys().isdisjoint(state):
        raise ValueError(
            f"{KEY} = {path!r} holds nothing of {type(backbone).__name__}. Its first names are "
            f"{first(in_file, 3)}; those of the backbone, {first(state, 3)}. Use weights of this backbone."
        )
    return {prefix + name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIER)}


def _is_torchvisions(weights: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Return whether weights have torchvision's names of a ResNet, and the backbone has Detectron2's."""
    return "layer1.0.conv1.weight" in weights and "stem.conv1.weight" in state


def _renamed(weights: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return weights under the names that they have in the backbone, without those that it leaves out."""
    if _is_torchvisions(weights, backbone.state_dict()):
        return {_from_torchvision(name): tensor for name, tensor in weights.items()}
    if not isinstance(backbone, TimmBackbone):
        return weights
    weights = in_timms_order(weights, backbone.trunk.state_dict())
    named = {f"trunk.{name}": tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in named.items() if name not in backbone.left_out}


def in_timms_order(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of EfficientNet's first port under timm's names, and others as they are.

    The port has timm's tensors in timm's order.

    Args:
        own: the state dict of timm's model.
    """
    return dict(zip(own, weights.values(), strict=False)) if "_conv_stem.weight" in weights else weights


def _local(path: str) -> str:
    try:
        if path.startswith(TORCHVISION):
            path = torchvision.models.get_weight(path.removeprefix(TORCHVISION)).url
    except (ValueError, AttributeError, KeyError) as error:  # raised for an unknown class, or name in it
        raise ValueError(f"{KEY} = {path!r}: torchvision has no such weights.") from error
    try:
        local = PathManager.get_local_path(path)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{KEY} = {path!r} could not be downloaded ({error}). {_COPY}") from error
    if not PathManager.isfile(local):
        raise FileNotFoundError(f"{KEY} = {path!r}: there is no such file.")
    return local


def _from_timm(path: str) -> dict[str, Tensor]:
    name = path.removeprefix(TIMM_WEIGHTS)
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if name not in tags:
        raise ValueError(f"{KEY} = {path!r}: timm has no such weights. It has: {', '.join(tags) or 'none'}.")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{KEY} = {path!r} could not be downloaded ({error}). {_COPY}") from error


def _from_torchvision(name: str) -> str:
    """Return Detectron2's name of a tensor of torchvision's ResNets."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
