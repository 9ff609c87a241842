import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn


def distributed(model: nn.Module, device: str, **kwargs) -> nn.Module:
    """Return Detectron2's ``create_ddp_model`` of a model, on a CPU as well."""
    # Detectron2 names a GPU for each process. DDP refuses that for a model on a CPU.
    on_cpu = {"device_ids": None} if torch.device(device).type == "cpu" else {}
    return create_ddp_model(model, **kwargs, **on_cpu)


def check_processes(cfg: CfgNode) -> None:
    """Check that the processes have devices as ``MODEL.DEVICE`` says, and that they can share the batch.

    Raises:
        ValueError: they have other devices, or the batch is not a multiple of their number.
    """
    world_size, device = comm.get_world_size(), torch.device(cfg.MODEL.DEVICE)
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
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if batch % (reference or world_size):
        keys = " (SOLVER.REFERENCE_WORLD_SIZE)" if reference else ""
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH = {batch} images cannot be shared by {reference or world_size} processes"
            f"{keys}. Set it to a multiple of {reference or world_size}."
        )
