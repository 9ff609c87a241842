"""Hooks that let training survive: kills, non-finite losses, full disks."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.optim.lr_scheduler import LRScheduler

from ..checkpoint import DenseCLIPCheckpointer
from ..utils.random_state import get_random_state, set_random_state

logger = logging.getLogger(__name__)


class RunState(HookBase):
    """Save with each checkpoint, and restore, what Detectron2 leaves out: random generators, moving averages.

    The random generators are those of the main process, which alone saves. On resume, the others seed theirs
    by seed, rank and iteration. (The training data's order and augmentation are the loader's to remember, and
    exact for all processes.) ``TEST.PRECISE_BN``'s own images are not remembered.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed: ``SEED``; negative for random.
        """
        self._seed = seed
        self._loaded: dict | None = None

    def state_dict(self) -> dict:
        normalizers = {name: module.loss_normalizer for name, module in self._normalized()}
        return {
            "random": get_random_state(cuda=torch.cuda.is_initialized()),
            "loss_normalizer": normalizers,
        }

    def load_state_dict(self, state: dict) -> None:
        self._loaded = state

    def before_train(self) -> None:
        if self._loaded is None:
            return
        modules = dict(self.trainer.checkpointer.model.named_modules())
        for name, value in self._loaded["loss_normalizer"].items():
            modules[name].loss_normalizer = value
        if comm.is_main_process():
            set_random_state(self._loaded["random"])
        elif self._seed >= 0:
            seed_all_rng(self._seed + comm.get_rank() + self.trainer.start_iter)
        self._loaded = None

    def _normalized(self) -> list[tuple[str, DenseDetector]]:
        # A moving average that Detectron2's dense detectors keep outside of their state_dict.
        modules = self.trainer.checkpointer.model.named_modules()
        return [(n, m) for n, m in modules if isinstance(m, DenseDetector) and hasattr(m, "loss_normalizer")]


class LearningRates(HookBase):
    """Train on at the config's learning rates after a resume, which torch would take from the checkpoint."""

    def __init__(self, scheduler: LRScheduler):
        """
        Args:
            scheduler: as built from the config, before a checkpoint is loaded.
        """
        self._rates = [*scheduler.base_lrs]

    def before_train(self) -> None:
        scheduler, before = self.trainer.scheduler, self.trainer.scheduler.base_lrs
        if before == self._rates:
            return
        logger.warning("The config's learning rates differ from the checkpoint's, and replace them.")
        scheduler.base_lrs = self._rates
        groups = zip(self.trainer.optimizer.param_groups, self._rates, scheduler.get_lr(), strict=True)
        for group, initial, rate in groups:
            group.update(initial_lr=initial, lr=rate)


class UnoptimizedScripts(HookBase):
    """Run scripted functions, such as Detectron2's focal loss, as they are written, while a CPU trains.

    TorchScript rewrites a function after its first calls in a process, and then it rounds differently: a run
    that resumes would differ from one that was not interrupted in the last bits. Nothing changes on GPUs,
    where fusion pays and no equality is promised.
    """

    def __init__(self):
        self._context = ExitStack()

    def before_train(self) -> None:
        if next(self.trainer.model.parameters()).device.type == "cpu":
            self._context.enter_context(torch.jit.optimized_execution(False))

    def after_train(self) -> None:
        self._context.close()


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's, which still knows after a resume which checkpoints are this run's and may be deleted."""

    def state_dict(self) -> dict:
        return {"recent": [Path(path).name for path in self.recent_checkpoints]}

    def load_state_dict(self, state: dict) -> None:
        self.recent_checkpoints = [str(Path(self.checkpointer.save_dir, name)) for name in state["recent"]]

    def before_train(self) -> None:
        super().before_train()
        if self.max_to_keep is not None and self.trainer.start_iter > 0:
            self._forget_old()
        final = Path(self.checkpointer.save_dir, f"{self.file_prefix}_final.pth")
        if self.trainer.start_iter >= self.trainer.max_iter and not final.exists():
            # A kill came between the last iteration's checkpoint and this one: as it would have been written.
            self.trainer.iter = self.trainer._trainer.iter = self.trainer.max_iter - 1
            self.checkpointer.save(final.stem, iteration=self.trainer.iter)
            self.trainer.iter = self.trainer.start_iter

    def _forget_old(self) -> None:
        # A checkpoint is noted after it is saved, and a kill can come before an old one is deleted.
        name = f"{self.file_prefix}_{self.trainer.start_iter - 1:07d}.pth"
        resumed = Path(self.checkpointer.save_dir, name)
        if resumed.exists() and str(resumed) not in self.recent_checkpoints:
            self.recent_checkpoints.append(str(resumed))
        for path in self.recent_checkpoints[: -self.max_to_keep]:
            Path(path).unlink(missing_ok=True)
        self.recent_checkpoints = self.recent_checkpoints[-self.max_to_keep :]


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, whose best score survives a resume.

    Writes ``model_best.pth``, weights alone, and ``model_best.json``: metric, score and iteration.
    """

    def __init__(self, eval_period: int, checkpointer: "BestWeights", val_metric: str):
        """
        Args:
            eval_period: as of the ``EvalHook``, which must come before.
            val_metric: such as "bbox/AP"; more is better.
        """
        super().__init__(eval_period, checkpointer, val_metric)
        self._memory = Path(checkpointer.save_dir, "model_best.json")

    def before_train(self) -> None:
        # Kept beside model_best.pth, which it describes, and not in checkpoints, which may be deleted.
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
    """A checkpointer of weights that no run resumes from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class EvalHook(hooks.EvalHook):
    """Detectron2's, which runs before the periodic checkpoint, and saves one where evaluation fails."""

    def _do_eval(self) -> None:
        try:
            super()._do_eval()
        except Exception:
            if self.trainer.iter < self.trainer.max_iter:
                self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise


def check_survival(cfg: CfgNode) -> None:
    """Refuse an impossible ``SOLVER.KEEP_BEST``.

    Raises:
        ValueError: a best checkpoint without a dataset to tell it by.
    """
    if cfg.SOLVER.KEEP_BEST and not cfg.DATASETS.TEST:
        raise ValueError(
            f"SOLVER.KEEP_BEST is {cfg.SOLVER.KEEP_BEST!r}, but DATASETS.TEST is empty. "
            "Name a dataset there, or leave SOLVER.KEEP_BEST empty."
        )
