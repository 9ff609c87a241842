import torch
from detectron2.config import CfgNode

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def check_precision(cfg: CfgNode) -> None:
    """Check that ``MODEL.DEVICE`` can train as ``SOLVER.AMP`` says.

    Raises:
        ValueError: float16 on a CPU.
    """
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise ValueError(
            "SOLVER.AMP.PRECISION is 'float16', which trains on GPUs only, and MODEL.DEVICE is 'cpu'. "
            "Set SOLVER.AMP.PRECISION to bfloat16, or SOLVER.AMP.ENABLED to False."
        )
