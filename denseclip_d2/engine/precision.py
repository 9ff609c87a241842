from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def check_precision(cfg: CfgNode) -> None:
    """See that ``SOLVER.AMP`` is possible on ``MODEL.DEVICE``.

    Raises:
        ValueError: float16 on a CPU.
    """
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise ValueError(
            "SOLVER.AMP.PRECISION is 'float16', which trains on GPUs only, and MODEL.DEVICE is 'cpu'. "
            "Set SOLVER.AMP.PRECISION to bfloat16, or SOLVER.AMP.ENABLED to False."
        )


class MixedPrecisionTrainer(AMPTrainer):
    """Detectron2's ``AMPTrainer``: float16 with a gradient scaler, bfloat16 without, on CPUs as well.

    The forward pass runs under autocast; backward pass, weights and optimizer's state are as in float32.
    """

    def __init__(self, model: nn.Module, data_loader, optimizer, *, precision: str, device: str):
        """
        Args:
            model, data_loader, optimizer: as for ``AMPTrainer``.
            precision: a key of ``PRECISIONS``.
            device: the model's.
        """
        # bfloat16 has float32's range, so that gradients need no scaling.
        self.device_type = torch.device(device).type
        scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "float16")
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=PRECISIONS[precision])

    def run_step(self) -> None:
        if self.device_type == "cuda":
            super().run_step()
            return
        # AMPTrainer insists on CUDA. Without a scaler its step is SimpleTrainer's with the forward pass under
        # autocast; the whole step under autocast would change the precision of the backward pass.
        with _forward_under(torch.autocast(self.device_type, self.precision), self.model):
            SimpleTrainer.run_step(self)

    def load_state_dict(self, state_dict: dict) -> None:
        # A run in another precision, resumed in this one, has no scaler's state: begin with a fresh scaler.
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})


@contextmanager
def _forward_under(context: torch.autocast, module: nn.Module) -> Iterator[None]:
    """Run calls of a module, and nothing around them, in a context."""

    def enter(*_) -> None:
        context.__enter__()

    def leave(*_) -> None:
        context.__exit__(None, None, None)

    handles = (
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
