import time
from collections.abc import Mapping, Sequence

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from ..checkpoint import DenseCLIPCheckpointer
from .optimizer import GradientClipper

AMP_PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainLoop(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with mixed precision, gradient clipping and a check of the losses."""

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        *,
        device: str,
        checkpointer: DenseCLIPCheckpointer,
        precision: str = "float32",
        clip: GradientClipper | None = None,
    ):
        """
        Args:
            model, data_loader, optimizer: as for ``SimpleTrainer``.
            device: the device of the model.
            checkpointer: names the last good checkpoint in the error of a loss that is not finite.
            precision: "float32", or a key of ``AMP_PRECISIONS``, in which the forward pass then runs.
            clip: clips the gradients before each step of the optimizer.
        """
        super().__init__(model, data_loader, optimizer)
        device_type = torch.device(device).type
        self.checkpointer = checkpointer
        self.clip = clip
        self.autocast = torch.autocast(
            device_type, AMP_PRECISIONS.get(precision), enabled=precision in AMP_PRECISIONS
        )
        # bfloat16 has the range of float32. Its gradients need no scaling.
        self.grad_scaler = torch.amp.GradScaler(device_type, enabled=precision == "float16")

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            FloatingPointError: a loss is not finite. The weights stay as they were before the step.
        """
        assert self.model.training, "the model is in evaluation mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with self.autocast:
            losses = self.model(batch)
        loss = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(loss).backward()
        self.after_backward()
        # The check waits for the GPU. Before the backward pass, the wait would leave the GPU idle.
        if not torch.isfinite(loss):
            raise FloatingPointError(self._not_finite(losses, batch))
        self._write_metrics(losses, data_time)

        self.grad_scaler.unscale_(self.optimizer)
        if self.clip:
            self.clip(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # A run in another precision has no state of a scaler. The scaler then begins anew.
        if state := state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state)

    def _not_finite(self, losses: Mapping[str, Tensor], batch: Sequence[dict]) -> str:
        values = ", ".join(f"{name} = {loss.item():.4g}" for name, loss in losses.items())
        images = ", ".join(image.get("file_name", "without a name") for image in batch)
        return (
            f"The loss is not finite at iteration {self.iter}: {values}. Images: {images}. "
            f"Look at these images. If they are fine: {self.checkpointer.advise_lower_rate()}"
        )
