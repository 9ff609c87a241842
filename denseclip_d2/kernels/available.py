from importlib.util import find_spec

import torch

HAS_TRITON = find_spec("triton") is not None
"""Whether Triton is installed. The first run of a kernel imports it."""


def triton_runs_on(device: torch.device) -> bool:
    return HAS_TRITON and device.type == "cuda"
