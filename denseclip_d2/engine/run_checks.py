from importlib.util import find_spec

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn

from ..language.prompting import PRECOMPUTED_CANNOT_TRAIN


def distributed(model: nn.Module, device: str, **kwargs) -> nn.Module:
    """Return Detectron2's ``create_ddp_model`` of a model, on a CPU as well."""
    # Detectron2 names a GPU for each process. DDP refuses that for a model on a CPU.
    on_cpu = {"device_ids": None} if torch.device(device).type == "cpu" else {}
    return create_ddp_model(model, **kwargs, **on_cpu)


def check_run(cfg: CfgNode) -> None:
    """Check that this config can be trained on this device by these processes.

    Raises:
        ValueError: the model cannot be trained, the processes have other devices or cannot share the batch,
            float16 is asked of a CPU, the optimizer's package is not installed, or there is no dataset to
            choose the best checkpoint.
    """
    solver, world_size, device = cfg.SOLVER, comm.get_world_size(), torch.device(cfg.MODEL.DEVICE)
    prompt = cfg.MODEL.DENSECLIP.PROMPT
    if prompt.PRECOMPUTED and not prompt.VOCABULARY:
        raise ValueError(PRECOMPUTED_CANNOT_TRAIN)
    if solver.AMP.ENABLED and solver.AMP.PRECISION == "float16" and device.type == "cpu":
        raise ValueError(
            "SOLVER.AMP.PRECISION is 'float16', which trains on GPUs only, and MODEL.DEVICE is 'cpu'. "
            "Set SOLVER.AMP.PRECISION to bfloat16, or SOLVER.AMP.ENABLED to False."
        )
    if solver.OPTIMIZER == "ADAMW8BIT" and not find_spec("bitsandbytes"):
        raise ValueError(
            "SOLVER.OPTIMIZER 'ADAMW8BIT' needs bitsandbytes: pip install bitsandbytes, or set 'ADAMW'."
        )
    if solver.BEST_METRIC and not cfg.DATASETS.TEST:
        raise ValueError(
            f"SOLVER.BEST_METRIC is {solver.BEST_METRIC!r}, but DATASETS.TEST is empty. "
            "Name a dataset in DATASETS.TEST, or leave SOLVER.BEST_METRIC empty."
        )
    if world_size > 1 and device.type == "cpu" and dist.get_backend() == dist.Backend.NCCL:
        raise ValueError(
            "MODEL.DEVICE is 'cpu', but the processes were started for GPUs. Set MODEL.DEVICE to 'cuda', or "
            "hide the GPUs with CUDA_VISIBLE_DEVICES= in the environment."
        )
    if world_size > 1 and device.index is not None:
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} for {world_size} processes, each of which has its own "
            "GPU. Set MODEL.DEVICE to 'cuda'."
        )
    # Detectron2 scales a batch for REFERENCE_WORLD_SIZE processes to the number of processes.
    processes = solver.REFERENCE_WORLD_SIZE or world_size
    if solver.IMS_PER_BATCH % processes:
        key = " (SOLVER.REFERENCE_WORLD_SIZE)" if solver.REFERENCE_WORLD_SIZE else ""
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH = {solver.IMS_PER_BATCH} images cannot be shared by {processes} "
            f"processes{key}. Set it to a multiple of {processes}."
        )
