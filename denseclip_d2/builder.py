"""A config's model, made ready to run on the device and the processes at hand."""

import logging
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.utils import comm
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from timm.models import FastVit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .checkpoint import DenseCLIPCheckpointer
from .config import set_pixels
from .config.checks import leaves
from .config.projects import default_config
from .data.class_names import get_class_names
from .guidance import guidance_of
from .utils.memory import available_memory
from .utils.random_state import get_random_state, set_random_state
from .visual import VisualEncoder

logger = logging.getLogger(__name__)

Norm = _BatchNorm | FrozenBatchNorm2d

SYNC_BN_ON_CPUS = (
    "SyncBN becomes BN, as PyTorch has no SyncBN on CPUs: each process normalizes by the images of its own, "
    "and the checkpoint holds the statistics of the first process"
)


def build_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, with norms that fit, ``MODEL.COMPILE`` and ``MODEL.CHANNELS_LAST``.

    Returns: the model in training mode, with random weights.
    Raises:
        ValueError: ``MODEL.COMPILE`` together with checkpointed activations, or on a CPU without a C++
            compiler.
        MemoryError: the weights are larger than the memory that is free.
    """
    cfg = _completed(cfg)
    _check_size(cfg)
    if lost := lost_sync_bn(cfg):
        logger.warning("%s.", lost)
    model = modeling.build_model(with_fitting_norms(cfg))
    if cfg.MODEL.COMPILE:
        _compile_visual_encoder(cfg, model)
    if cfg.MODEL.CHANNELS_LAST and can_be_channels_last(model, cfg.MODEL.DEVICE):
        model.to(memory_format=torch.channels_last)
    return model


def build_model_with_weights(cfg: CfgNode, *, fresh_start: bool = False) -> nn.Module:
    """:func:`build_model`, and ``MODEL.WEIGHTS`` loaded.

    Args:
        fresh_start: what training begins from is enough, CLIP's weights say; False: every tensor is needed.

    Raises:
        ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
    """
    model = build_model(cfg)
    checkpointer = DenseCLIPCheckpointer(
        model, fresh_start=fresh_start, allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS
    )
    checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


def _completed(cfg: CfgNode) -> CfgNode:
    """Return the config with the pixel statistics and class names that architecture and datasets give."""
    cfg = cfg.clone()
    cfg.defrost()
    set_pixels(cfg)
    if cfg.MODEL.BACKBONE.NAME.startswith("build_denseclip_"):
        cfg.MODEL.DENSECLIP.CLASS_NAMES = get_class_names(cfg)
    return cfg


def class_names_of(model: nn.Module, cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names that a model reads, or those of its config for a model without language.

    Raises:
        ValueError: the model is without language, and neither the config nor its datasets have names.
    """
    guided = guidance_of(model)
    return guided.language.class_names if guided else get_class_names(cfg)


def make_fast(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Make a model with weights, in place, fit for inference alone: ``TEST.FAST`` and ``TEST.PRECISION``.

    Returns: the model, in evaluation mode.
    """
    model.eval()
    if cfg.TEST.FAST:
        fuse_norms(model)
        if can_be_channels_last(model, cfg.MODEL.DEVICE):
            model.to(memory_format=torch.channels_last)
    if cfg.TEST.PRECISION != "float32":
        device_type = torch.device(cfg.MODEL.DEVICE).type
        autocast = torch.autocast(device_type, getattr(torch, cfg.TEST.PRECISION))
        model.forward = autocast(model.forward)
    return model


def can_be_channels_last(model: nn.Module, device: str) -> bool:
    """Whether channels-last memory is safe: timm's FastViT makes torch 2.14 crash on CPUs, in training."""
    return torch.device(device).type != "cpu" or not any(isinstance(m, FastVit) for m in model.modules())


def with_fitting_norms(cfg: CfgNode) -> CfgNode:
    """SyncBN on several GPUs, BN elsewhere: a config with "SyncBN" replaced, where it must be, at every NORM.

    Weights have the same names and shapes under both, and on one process the outputs are the same too.
    """
    if sync_bn_fits(cfg.MODEL.DEVICE):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    replace_sync_bn(cfg)
    return cfg


def lost_sync_bn(cfg: CfgNode) -> str:
    """What it means that SyncBN cannot be had across these processes; empty where nothing is lost."""
    return SYNC_BN_ON_CPUS if comm.get_world_size() > 1 and with_fitting_norms(cfg) != cfg else ""


def sync_bn_fits(device: str) -> bool:
    """Whether there are several processes, each on a GPU: elsewhere BN is the same, or all there is."""
    return comm.get_world_size() > 1 and torch.device(device).type != "cpu"


def replace_sync_bn(node: MutableMapping | MutableSequence) -> None:
    """Make "SyncBN" "BN" under every key that ends in "norm": a config's NORM, a LazyConfig's conv_norm."""
    for key, value in list(node.items() if isinstance(node, MutableMapping) else enumerate(node)):
        if isinstance(value, MutableMapping | MutableSequence):
            replace_sync_bn(value)
        elif value == "SyncBN" and str(key).lower().endswith("norm"):
            node[key] = "BN"


def _check_size(cfg: CfgNode) -> None:
    """
    Raises:
        MemoryError: a size far above its default makes the weights larger than the memory that is free.
    """
    # Linux grants memory that it does not have, and then kills: nothing would be said.
    defaults = dict(leaves(default_config(cfg.MODEL.DENSECLIP.PROJECTS or ())))
    larger = [
        f"{key} is {value}"
        for key, value in leaves(cfg.MODEL, "MODEL.")
        if isinstance(value, int) and isinstance(usual := defaults.get(key), int) and value > 4 * usual > 0
    ]
    free = available_memory()
    if not larger or free is None or cfg.MODEL.DEVICE == "meta":
        return
    state, copy = get_random_state(), with_fitting_norms(cfg).clone()
    copy.defrost()
    copy.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = modeling.build_model(copy)
    except (NotImplementedError, RuntimeError):  # a backbone that needs numbers to be built
        return
    finally:
        set_random_state(state)
    needed = sum(weight.nbytes for weight in model.state_dict().values())
    if needed > free:
        raise MemoryError(
            f"The model's weights take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are "
            f"free. Most are of {_largest_part(model)}. Lower what is far above its default: "
            f"{', '.join(larger)}."
        )


def _largest_part(module: nn.Module) -> str:
    """The path of the smallest part of a module that has more than half of its weights, and its class."""

    def size(part: nn.Module) -> int:
        return sum(weight.nbytes for weight in part.state_dict().values())

    half, path = size(module) / 2, []
    while larger := [(name, part) for name, part in module.named_children() if size(part) > half]:
        path.append(larger[0][0])
        module = larger[0][1]
    return f"{'.'.join(path)} ({type(module).__name__})"


def _compile_visual_encoder(cfg: CfgNode, model: nn.Module) -> None:
    if cfg.MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING:
        raise ValueError(
            "MODEL.COMPILE and MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING do not go together: "
            "torch.compile decides by itself what to compute again. Set one of them to False."
        )
    dynamic = None
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        _check_compiler()
        dynamic = False  # code for gradients of any size takes torch 2.14 more than ten minutes here
    for module in model.modules():
        if isinstance(module, VisualEncoder):
            module.compile(dynamic=dynamic)  # in place: weights keep their names


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds, which nothing else needs

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.COMPILE needs a C++ compiler on a CPU: {error}. Install g++, name another in the "
            "environment's CXX, or set MODEL.COMPILE to False."
        ) from None


def fuse_norms(model: nn.Module) -> None:
    """Fuse, in place, the batch norms of CLIP's ResNets, of Detectron2's convolutions and of sequences.

    Outputs are the same to rounding. Other norms stay: they depend on the image, or it is timm's forward
    pass that knows what is before them.

    Args:
        model: in evaluation mode; its weights have other names and values afterwards.
    """
    assert not model.training, "a norm that still learns cannot be fused"
    for module in list(model.modules()):
        for convolution, norm in _pairs(module):
            _fuse(module.get_submodule(convolution), module.get_submodule(norm))
            module.set_submodule(norm, nn.Identity())
        if isinstance(module, Conv2d) and isinstance(module.norm, Norm):
            _fuse(module, module.norm)
            module.norm = None


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a module's convolutions and of the norms that take what they give."""
    if isinstance(module, ModifiedResNet | Bottleneck):
        names = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
    elif isinstance(module, nn.Sequential):
        children = [name for name, _ in module.named_children()]
        names = list(zip(children, children[1:], strict=False))
    else:
        return
    for convolution, norm in names:
        before, after = module.get_submodule(convolution), module.get_submodule(norm)
        # Detectron2's own may have an activation in between.
        plain = isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(before, Conv2d)
        if plain and isinstance(after, Norm):
            yield convolution, norm


@torch.no_grad()
def _fuse(convolution: Any, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias, transpose=isinstance(convolution, nn.ConvTranspose2d),
    )  # fmt: skip
