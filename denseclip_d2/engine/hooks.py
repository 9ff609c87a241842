"""Hooks that make a run survive kills, full disks and failed evaluations."""

import json
from pathlib import Path

import torch
from detectron2.engine import HookBase, hooks
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..checkpoint import DenseCLIPCheckpointer
from ..language import PromptedTextEncoder
from ..utils.random_state import get_random_state, set_random_state


class RunState(HookBase):
    """Save with each checkpoint, and restore, what Detectron2 leaves out.

    These are random generators, moving averages, and what training steps leave of their names for later ones.
    The main process alone saves, and restores its own generators. On resume, the other processes seed theirs
    by seed, rank and iteration. The loader keeps the order and augmentation of the data, for all processes.
    The images of ``TEST.PRECISE_BN`` are not restored.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed: ``SEED``; negative for random.
        """
        self._seed = seed
        self._loaded: dict | None = None

    def state_dict(self) -> dict:
        return {
            "random": get_random_state(cuda=torch.cuda.is_initialized()),
            "loss_normalizer": {name: module.loss_normalizer for name, module in self._normalized()},
            "step_names": [encoder.steps_state() for encoder in self._encoders()],
        }

    def load_state_dict(self, state: dict) -> None:
        self._loaded = state

    def before_train(self) -> None:
        if self._loaded is None:
            return
        modules = dict(self.trainer.checkpointer.model.named_modules())
        for name, value in self._loaded["loss_normalizer"].items():
            modules[name].loss_normalizer = value
        for encoder, state in zip(self._encoders(), self._loaded.get("step_names", ()), strict=False):
            encoder.load_steps_state(state)
        if comm.is_main_process():
            set_random_state(self._loaded["random"])
        elif self._seed >= 0:
            seed_all_rng(self._seed + comm.get_rank() + self.trainer.start_iter)
        self._loaded = None

    def _encoders(self) -> list[PromptedTextEncoder]:
        # What steps read of the names is no weight.
        modules = self.trainer.checkpointer.model.modules()
        return [m for m in modules if isinstance(m, PromptedTextEncoder) and m.reads_some_names]

    def _normalized(self) -> list[tuple[str, DenseDetector]]:
        # Detectron2's dense detectors keep a moving average outside of their state_dict.
        modules = self.trainer.checkpointer.model.named_modules()
        return [(n, m) for n, m in modules if isinstance(m, DenseDetector) and hasattr(m, "loss_normalizer")]


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which after a resume still knows the checkpoints of the run that it may delete."""

    def state_dict(self) -> dict:
        return {"recent": [Path(path).name for path in self.recent_checkpoints]}

    def load_state_dict(self, state: dict) -> None:
        self.recent_checkpoints = [str(Path(self.checkpointer.save_dir, name)) for name in state["recent"]]

    def before_train(self) -> None:
        super().before_train()
        if self.max_to_keep is not None and self.trainer.start_iter > 0:
            self._delete_old()
        final = Path(self.checkpointer.save_dir, f"{self.file_prefix}_final.pth")
        if self.trainer.start_iter >= self.trainer.max_iter and not final.exists():
            # A kill came between the last iteration's checkpoint and the final one. Write the final one.
            self.trainer.iter = self.trainer._trainer.iter = self.trainer.max_iter - 1
            self.checkpointer.save(final.stem, iteration=self.trainer.iter)
            self.trainer.iter = self.trainer.start_iter

    def _delete_old(self) -> None:
        # A kill can come after a checkpoint is saved, and before it is noted and an old one is deleted.
        name = f"{self.file_prefix}_{self.trainer.start_iter - 1:07d}.pth"
        resumed = Path(self.checkpointer.save_dir, name)
        if resumed.exists() and str(resumed) not in self.recent_checkpoints:
            self.recent_checkpoints.append(str(resumed))
        for path in self.recent_checkpoints[: -self.max_to_keep]:
            Path(path).unlink(missing_ok=True)
        self.recent_checkpoints = self.recent_checkpoints[-self.max_to_keep :]


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, whose best score survives a resume.

    The hook writes the weights alone into ``model_best.pth``, and metric, score and iteration into
    ``model_best.json``.
    """

    def __init__(self, eval_period: int, checkpointer: "BestWeights", val_metric: str):
        """
        Args:
            eval_period: the period of the ``EvalHook``, which must come before.
            val_metric: a metric of which more is better, such as "bbox/AP".
        """
        super().__init__(eval_period, checkpointer, val_metric)
        self._memory = Path(checkpointer.save_dir, "model_best.json")

    def before_train(self) -> None:
        # The score is beside model_best.pth, because the checkpoint of that iteration may be deleted.
        if self.trainer.start_iter > 0 and self._memory.exists():
            memory = json.loads(self._memory.read_bytes())
            if memory["metric"] == self._val_metric:
                self.best_metric, self.best_iter = memory["score"], memory["iteration"]

    def _best_checking(self) -> None:
        before = self.best_iter
        super()._best_checking()
        if self.best_iter != before:
            memory = {"metric": self._val_metric, "score": self.best_metric, "iteration": self.best_iter}
            with self._checkpointer.path_manager.open(str(self._memory), "w", encoding="utf-8") as file:
                json.dump(memory, file)


class BestWeights(DenseCLIPCheckpointer):
    """A checkpointer of weights from which no run resumes."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class EvalHook(hooks.EvalHook):
    """Detectron2's hook, which saves a checkpoint if evaluation fails before the periodic checkpoint."""

    def _do_eval(self) -> None:
        try:
            super()._do_eval()
        except Exception:
            if self.trainer.iter < self.trainer.max_iter:
                self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise
