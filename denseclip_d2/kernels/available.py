from importlib.util import find_spec

import torch

HAS_TRITON = find_spec("triton") is not None
"""Triton is installed; it is imported only when a kernel first runs."""


def triton_runs_on(device: torch.device) -> bool:
    return HAS_TRITON and device.type == "cuda"
