"""Strided convolutions of narrow maps, which PyTorch computes wrongly in bfloat16 on processors with AMX."""

from typing import Any

import torch
from torch import Tensor, nn


def compute_narrow_maps_in_float32(model: nn.Module) -> None:
    """Compute single columns of strided convolutions in float32 on the CPU, also under autocast.

    With AMX, some rows of such a column are wrong in torch 2.14.1, at times NaN
    (``findings/torch_amx_strided_convolution.sh``). RetinaNet's coarsest level of small images is one.
    """
    for module in model.modules():
        strided = isinstance(module, nn.Conv2d) and module.stride[1] > 1
        if strided and module.weight.device.type == "cpu":
            module.register_forward_pre_hook(_begin)
            module.register_forward_hook(_end, always_call=True)


def _begin(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    if not (torch.is_autocast_enabled("cpu") and _returns_a_column(module, inputs[0].shape[3])):
        return None
    module._in_float32 = torch.autocast("cpu", enabled=False)
    module._in_float32.__enter__()
    return (inputs[0].float(),)


def _end(module: nn.Module, *_: Any) -> None:
    if context := module.__dict__.pop("_in_float32", None):
        context.__exit__(None, None, None)


def _returns_a_column(module: Any, width: int) -> bool:
    kernel = module.dilation[1] * (module.kernel_size[1] - 1) + 1
    padding = 0 if isinstance(module.padding, str) else module.padding[1]
    return (width + 2 * padding - kernel) // module.stride[1] == 0
