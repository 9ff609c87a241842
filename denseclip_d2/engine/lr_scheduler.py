import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as _build_lr_scheduler
from detectron2.solver.lr_scheduler import LRScheduler, _get_warmup_factor_at_iter


class WarmupPolyLR(LRScheduler):
    """Polynomial decay of each group's learning rate to one end for all groups, after a warm-up.

    At iteration i: (rate - end) * (1 - i / max_iters)^power + end, times the factor of the warm-up. That is
    the recipe of the released segmentors. Detectron2's schedule of that name decays to 0.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        *,
        power: float,
        end: float,
        warmup_factor: float,
        warmup_iters: int,
        warmup_method: str = "linear",
    ):
        """
        Args:
            max_iters: the number of iterations of training.
            power: the power of the polynomial.
            end: the learning rate after ``max_iters``.
            warmup_factor, warmup_iters, warmup_method: as for Detectron2's schedules.
        """
        self.max_iters = max_iters
        self.power = power
        self.end = end
        self.warmup = (warmup_method, warmup_iters, warmup_factor)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        method, iters, factor = self.warmup
        warmup = _get_warmup_factor_at_iter(method, self.last_epoch, iters, factor)
        decay = (1 - self.last_epoch / self.max_iters) ** self.power
        return [warmup * ((rate - self.end) * decay + self.end) for rate in self.base_lrs]

    def state_dict(self) -> dict:
        # The rest is the config's, as for Detectron2's LRMultiplier.
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build Detectron2's schedule of ``SOLVER.LR_SCHEDULER_NAME``, or "WarmupPolyLR"."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        if solver.MAX_ITER in solver.STEPS:  # fvcore refuses a step at the end, although that changes nothing
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.STEPS = tuple(step for step in solver.STEPS if step != solver.MAX_ITER)
        return _build_lr_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        solver.MAX_ITER,
        power=solver.POLY_LR_POWER,
        end=solver.BASE_LR_END,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_method=solver.WARMUP_METHOD,
    )
