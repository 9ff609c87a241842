"""What a config means for the processes and the device at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, defaults
from detectron2.utils import comm

from .precision import MixedPrecisionTrainer


def check_processes(cfg: CfgNode) -> None:
    """See that the model's device is what the processes were started for, and that they can share the batch.

    Raises:
        ValueError: they are not, or cannot.
    """
    world_size = comm.get_world_size()
    if world_size > 1 and _on_cpu(cfg) and dist.get_backend() == dist.Backend.NCCL:
        raise ValueError(
            "MODEL.DEVICE is 'cpu', but the processes were started for GPUs. "
            "Hide the GPUs by CUDA_VISIBLE_DEVICES= in the environment, or leave MODEL.DEVICE 'cuda'."
        )
    if world_size > 1 and torch.device(cfg.MODEL.DEVICE).index is not None:
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} for {world_size} processes, each of which has a GPU of "
            "its own. Set it to 'cuda'."
        )
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference and batch % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH = {batch} images cannot be shared by {reference} processes, which "
            f"SOLVER.REFERENCE_WORLD_SIZE says it is for: set it to a multiple of {reference}, or "
            "REFERENCE_WORLD_SIZE to 0."
        )
    batch = DefaultTrainer.auto_scale_workers(cfg, world_size).SOLVER.IMS_PER_BATCH
    if batch % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH = {batch} images cannot be shared by {world_size} processes: "
            f"set it to a multiple of {world_size}."
        )


def _on_cpu(cfg: CfgNode) -> bool:
    return torch.device(cfg.MODEL.DEVICE).type == "cpu"


@contextmanager
def fitting_trainer_parts(cfg: CfgNode) -> Iterator[None]:
    """Give ``DefaultTrainer.__init__``, while it runs, the parts that this device needs.

    It takes ``create_ddp_model`` and ``AMPTrainer`` by name from its own module and has no method to override
    for either. The first names a GPU for each process, which DDP refuses for a model on a CPU, whatever the
    model is wrapped in; the second knows float16 on CUDA only. Hence the names are exchanged for the one
    call; the other way would be a copy of ``__init__``.
    """
    parts = {
        "AMPTrainer": partial(
            MixedPrecisionTrainer, precision=cfg.SOLVER.AMP.PRECISION, device=cfg.MODEL.DEVICE
        )
    }
    if _on_cpu(cfg):
        parts["create_ddp_model"] = partial(create_ddp_model, device_ids=None)
    originals = {name: getattr(defaults, name) for name in parts}
    vars(defaults).update(parts)
    try:
        yield
    finally:
        vars(defaults).update(originals)
