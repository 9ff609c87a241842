"""Train and evaluate from Detectron2's LazyConfigs."""

import logging
import weakref
from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..builder import replace_sync_bn, sync_bn_supported
from ..checkpoint import DenseCLIPCheckpointer
from ..language.precomputed import precomputed_text
from ..utils.narrow_maps import compute_narrow_maps_in_float32
from .hooks import RunState
from .optimizer import clip_gradients
from .run_checks import distributed
from .train_loop import TrainLoop

logger = logging.getLogger(__name__)


def load_lazy_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a LazyConfig, and set the ``KEY=VALUE`` pairs, whose values are YAML.

    Raises:
        ValueError: a pair without "=", or an unknown key.
        FileNotFoundError: there is no such file.
    """
    cfg = LazyConfig.load(path)
    for pair in overrides:
        key, equals, value = pair.partition("=")
        if not equals or OmegaConf.select(cfg, key, default=cfg) is cfg:
            raise ValueError(
                f"{pair!r}: {path} has no key {key!r}. Give KEY=VALUE, such as train.max_iter=9."
            )
        # Unlike Detectron2's overrides, with 1e-5 as a number.
        OmegaConf.update(cfg, key, OmegaConf.from_dotlist([f"value={value}"]).value)
    return cfg


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """Build ``cfg.model`` on ``cfg.train.device``, or on the CPU if there is no GPU.

    As with a YAML config, SyncBN becomes BN in a single process and on CPUs. The weights keep their names.
    """
    if cfg.train.device == "cuda" and not torch.cuda.is_available():
        logger.warning("No GPU: train.device is set to 'cpu'.")
        cfg.train.device = "cpu"
    if not sync_bn_supported(cfg.train.device):
        replace_sync_bn(cfg.model)
    model = instantiate(cfg.model).to(cfg.train.device)
    compute_narrow_maps_in_float32(model)
    return model


def evaluate_lazy_config(cfg: DictConfig, model: nn.Module) -> dict:
    """Run ``cfg.dataloader.evaluator`` on ``cfg.dataloader.test``; return {} without an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return {}
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    with precomputed_text(model):
        results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def train_lazy_config(cfg: DictConfig, *, resume: bool = False) -> None:
    """Train ``cfg.model`` as ``cfg.train`` says, from ``cfg.train.init_checkpoint``.

    Beside Detectron2's keys, ``cfg.train`` can have ``amp.precision`` ("float16" or "bfloat16") and
    ``clip_gradients``, the arguments of :func:`.clip_gradients`.

    Args:
        cfg: ``train.text_weights`` and ``train.backbone_weights`` go to :class:`DenseCLIPCheckpointer`.
        resume: go on where a run in ``cfg.train.output_dir`` stopped.

    Raises:
        ValueError, FileNotFoundError: float16 on a CPU; weights that are not the model's, see
            :class:`DenseCLIPCheckpointer`.
        FloatingPointError: a loss is not finite.
    """
    train = cfg.train
    precision = train.amp.get("precision", "float16") if train.amp.enabled else "float32"
    model = build_lazy_model(cfg)
    if precision == "float16" and train.device == "cpu":
        raise ValueError("float16 trains on GPUs only. Set train.amp.precision=bfloat16.")
    logger.info("Model:\n%s", model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = distributed(model, train.device, **train.ddp)
    weights = {key: train.get(key, "") for key in ("text_weights", "backbone_weights")}
    checkpointer = DenseCLIPCheckpointer(model, train.output_dir, **weights)
    trainer = TrainLoop(
        model, loader, optimizer, device=train.device, checkpointer=checkpointer, precision=precision,
        clip=partial(clip_gradients, **train.clip_gradients) if "clip_gradients" in train else None,
    )  # fmt: skip
    checkpointer.add_checkpointable("trainer", weakref.proxy(trainer))
    main, written = comm.is_main_process(), (train.output_dir, train.max_iter)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer) if main else None,
            hooks.EvalHook(train.eval_period, lambda: evaluate_lazy_config(cfg, model)),
            RunState(train.get("seed", -1)),
            hooks.PeriodicWriter(default_writers(*written), train.log_period) if main else None,
        ]
    )
    checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, train.max_iter)
