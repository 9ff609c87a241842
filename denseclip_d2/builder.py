"""Build the model of a config for the device and the processes at hand."""

import logging
from collections.abc import Iterator, MutableMapping, MutableSequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
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
from .data.class_names import get_class_names, get_stuff_names
from .guidance import guidance_of
from .utils.memory import available_memory
from .utils.narrow_maps import compute_narrow_maps_in_float32
from .utils.random_state import get_random_state, set_random_state
from .visual import VisualEncoder
from .visual.attention_pool import DenseAttentionPool

logger = logging.getLogger(__name__)

Norm = _BatchNorm | FrozenBatchNorm2d


def build_model(cfg: CfgNode) -> nn.Module:
    """Build a model with random weights, in training mode, by Detectron2's ``build_model``.

    ``MODEL.COMPILE`` and ``MODEL.CHANNELS_LAST`` are applied, and SyncBN becomes BN where it cannot run.

    Raises:
        ValueError: ``MODEL.COMPILE`` together with checkpointed activations, or on a CPU without a C++
            compiler.
        MemoryError: the weights are larger than the memory that is free.
    """
    cfg = _completed(cfg)
    _check_size(cfg)
    if lost := sync_bn_warning(cfg):
        logger.warning("%s.", lost)
    model = modeling.build_model(resolve_sync_bn(cfg))
    if cfg.MODEL.COMPILE:
        _compile_visual_encoder(cfg, model)
    if cfg.MODEL.CHANNELS_LAST and can_be_channels_last(model, cfg.MODEL.DEVICE):
        model.to(memory_format=torch.channels_last)
    compute_narrow_maps_in_float32(model)
    return model


def build_model_with_weights(cfg: CfgNode, *, for_training: bool = False) -> nn.Module:
    """Build a model, and load ``MODEL.WEIGHTS``.

    Args:
        for_training: accept weights to start training from, such as a CLIP's; False: need every tensor.

    Raises:
        ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
    """
    model = build_model(cfg)
    DenseCLIPCheckpointer.from_config(cfg, model, for_training=for_training).load(cfg.MODEL.WEIGHTS)
    return model


def _completed(cfg: CfgNode) -> CfgNode:
    """Return the config with the pixel statistics and class names that architecture and datasets give."""
    cfg = cfg.clone()
    cfg.defrost()
    set_pixels(cfg)
    if cfg.MODEL.BACKBONE.NAME.startswith("build_denseclip_"):
        cfg.MODEL.DENSECLIP.CLASS_NAMES = get_class_names(cfg)
        cfg.MODEL.DENSECLIP.STUFF_NAMES = get_stuff_names(cfg)
    return cfg


def class_names_of(model: nn.Module, cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names that a model reads, or those of its config for a model without language.

    Raises:
        ValueError: the model is without language, and neither the config nor its datasets have names.
    """
    guided = guidance_of(model)
    return guided.language.class_names if guided else get_class_names(cfg)


def optimize_for_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Prepare a model with weights for inference, in place, as ``TEST.OPTIMIZE_FOR_INFERENCE`` says.

    Run the model under :func:`inference_precision`.

    Returns: the model, in evaluation mode.
    """
    model.eval()
    if cfg.TEST.OPTIMIZE_FOR_INFERENCE:
        fuse_layers(model)
        if can_be_channels_last(model, cfg.MODEL.DEVICE):
            model.to(memory_format=torch.channels_last)
    if guided := guidance_of(model):
        with inference_precision(cfg):
            guided.language.precompute_(keep_encoder=True)
    return model


def inference_precision(cfg: CfgNode) -> AbstractContextManager:
    """Return the context that runs a model in ``TEST.PRECISION``."""
    if cfg.TEST.PRECISION == "float32" or cfg.TEST.RUNTIME:
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, getattr(torch, cfg.TEST.PRECISION))


def can_be_channels_last(model: nn.Module, device: str) -> bool:
    """Return whether channels-last memory is safe: torch 2.14 crashes as it trains a FastViT on a CPU."""
    return torch.device(device).type != "cpu" or not any(isinstance(m, FastVit) for m in model.modules())


def resolve_sync_bn(cfg: CfgNode) -> CfgNode:
    """Return a config whose norms can run here: BN in place of SyncBN, unless several GPUs train.

    The weights have the same names and shapes with both norms. In a single process, so have the outputs.
    """
    if sync_bn_supported(cfg.MODEL.DEVICE):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    replace_sync_bn(cfg)
    return cfg


def sync_bn_warning(cfg: CfgNode) -> str:
    """Return a warning if SyncBN is configured but unavailable for these processes, else an empty string."""
    if comm.get_world_size() == 1 or resolve_sync_bn(cfg) == cfg:
        return ""
    return (
        "SyncBN becomes BN, because PyTorch has no SyncBN on CPUs. Each process normalizes by its own "
        "images, and the checkpoint holds the statistics of the first process"
    )


def sync_bn_supported(device: str) -> bool:
    """Return whether several processes train, each on a GPU. Elsewhere, SyncBN is BN or does not exist."""
    return comm.get_world_size() > 1 and torch.device(device).type != "cpu"


def replace_sync_bn(node: MutableMapping | MutableSequence) -> None:
    """Replace "SyncBN" by "BN", in place, under every key that ends in "norm", such as NORM and conv_norm."""
    for key, value in list(node.items() if isinstance(node, MutableMapping) else enumerate(node)):
        if isinstance(value, MutableMapping | MutableSequence):
            replace_sync_bn(value)
        elif value == "SyncBN" and str(key).lower().endswith("norm"):
            node[key] = "BN"


def _check_size(cfg: CfgNode) -> None:
    """
    Raises:
        MemoryError: a size far above its default makes the weights larger than the free memory.
    """
    # Linux grants memory that it does not have. It would kill the process later, without a message.
    defaults = dict(leaves(default_config(cfg.MODEL.DENSECLIP.PROJECTS or ())))
    larger = [
        f"{key} is {value}"
        for key, value in leaves(cfg.MODEL, "MODEL.")
        if isinstance(value, int) and isinstance(usual := defaults.get(key), int) and value > 4 * usual > 0
    ]
    free = available_memory()
    if not larger or free is None or cfg.MODEL.DEVICE == "meta":
        return
    state, copy = get_random_state(), resolve_sync_bn(cfg).clone()
    copy.defrost()
    copy.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = modeling.build_model(copy)
    except (NotImplementedError, RuntimeError):  # a backbone whose constructor computes
        return
    finally:
        set_random_state(state)
    needed = sum(weight.nbytes for weight in model.state_dict().values())
    if needed > free:
        raise MemoryError(
            f"The model's weights take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are "
            f"free. Lower the values that are far above their defaults: {', '.join(larger)}."
        )


def _compile_visual_encoder(cfg: CfgNode, model: nn.Module) -> None:
    if cfg.MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING:
        raise ValueError(
            "MODEL.COMPILE and MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING do not go together, because "
            "torch.compile decides which activations to compute again. Set one of the keys to False."
        )
    dynamic = None
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        check_compiler("MODEL.COMPILE", "set MODEL.COMPILE to False")
        dynamic = False  # torch 2.14 compiles gradients of any size for more than ten minutes
    for module in model.modules():
        if isinstance(module, VisualEncoder):
            module.compile(dynamic=dynamic)  # in place, so that weights keep their names


def check_compiler(purpose: str, otherwise: str) -> None:
    """
    Raises:
        ValueError: there is no C++ compiler for ``purpose``.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # the import takes seconds

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(
            f"{purpose} needs a C++ compiler on a CPU: {error}. Install g++, name another in the "
            f"environment's CXX, or {otherwise}."
        ) from None


def fuse_layers(model: nn.Module) -> None:
    """Fuse linear layers that follow each other, in place. The outputs are the same up to rounding.

    These are batch norms after convolutions in CLIP's ResNets, Detectron2's convolutions and sequences, and
    the two projections of the values in an attention pool without attention. Other norms stay: they depend
    on the image, or only the forward pass of a timm model says which convolution is before them.

    Args:
        model: a model in evaluation mode. Its weights then have other names and values.
    """
    assert not model.training, "a norm that still learns cannot be fused"
    for module in list(model.modules()):
        for convolution, norm in _pairs(module):
            _fuse(module.get_submodule(convolution), module.get_submodule(norm))
            module.set_submodule(norm, nn.Identity())
        if isinstance(module, Conv2d) and isinstance(module.norm, Norm):
            _fuse(module, module.norm)
            module.norm = None
        if isinstance(module, DenseAttentionPool) and module.dense == "value":
            module.fuse_projections()


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of a module's convolutions, each with the name of the norm after it."""
    if isinstance(module, ModifiedResNet | Bottleneck):
        names = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
    elif isinstance(module, nn.Sequential):
        names = list(pairwise(name for name, _ in module.named_children()))
    else:
        return
    for convolution, norm in names:
        before, after = module.get_submodule(convolution), module.get_submodule(norm)
        # Detectron2's convolutions may have an activation in between.
        plain = isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(before, Conv2d)
        if plain and isinstance(after, Norm):
            yield convolution, norm


@torch.no_grad()
def _fuse(convolution: Any, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias, transpose=isinstance(convolution, nn.ConvTranspose2d),
    )  # fmt: skip
