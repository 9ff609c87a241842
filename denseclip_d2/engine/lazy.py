"""Training and evaluation from Detectron2's LazyConfigs."""

import logging
import weakref
from collections.abc import Sequence

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..builder import replace_sync_bn, sync_bn_fits
from ..checkpoint import DenseCLIPCheckpointer
from ..language.prompting import precomputed_text

logger = logging.getLogger(__name__)


def load_lazy_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A LazyConfig with ``KEY=VALUE`` pairs over it, values as YAML has them.

    Raises:
        ValueError: a pair without "=", or a key that the config has not.
        FileNotFoundError: there is no such file.
    """
    cfg = LazyConfig.load(path)
    for pair in overrides:
        key, equals, value = pair.partition("=")
        if not equals or OmegaConf.select(cfg, key, default=cfg) is cfg:
            raise ValueError(
                f"{pair!r}: {path} has no {key!r}; KEY=VALUE is needed, such as train.max_iter=9."
            )
        OmegaConf.update(cfg, key, OmegaConf.from_dotlist([f"value={value}"]).value)  # 1e-5 is a number here
    return cfg


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """``cfg.model`` on ``cfg.train.device``, or on the CPU where there is no GPU, with norms that fit.

    SyncBN becomes BN on a single process and on CPUs, as from a YAML config: the same weights and outputs.
    """
    if cfg.train.device == "cuda" and not torch.cuda.is_available():
        logger.warning("No GPU: train.device is set to 'cpu'.")
        cfg.train.device = "cpu"
    if not sync_bn_fits(cfg.train.device):
        replace_sync_bn(cfg.model)
    return instantiate(cfg.model).to(cfg.train.device)


def evaluate_lazily(cfg: DictConfig, model: nn.Module) -> dict:
    """``cfg.dataloader.evaluator`` on ``cfg.dataloader.test``; empty where there is no evaluator."""
    if "evaluator" not in cfg.dataloader:
        return {}
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    with precomputed_text(model):
        results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def train_lazily(cfg: DictConfig, *, resume: bool = False) -> None:
    """Train ``cfg.model`` as ``cfg.train`` says, from ``cfg.train.init_checkpoint``.

    Args:
        cfg: ``train.text_weights`` and ``train.backbone_weights`` go to :class:`DenseCLIPCheckpointer`.
        resume: go on where a run in ``cfg.train.output_dir`` stopped.

    Raises:
        ValueError, FileNotFoundError: weights that are not the model's, see :class:`DenseCLIPCheckpointer`.
    """
    model = build_lazy_model(cfg)
    logger.info("Model:\n%s", model)
    _groups_of(cfg.optimizer).params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    # Detectron2 names a GPU for each process, which DDP refuses for a model on a CPU.
    on_cpu = {"device_ids": None} if torch.device(cfg.train.device).type == "cpu" else {}
    parallel = create_ddp_model(model, **cfg.train.ddp, **on_cpu)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(parallel, loader, optimizer)
    checkpointer = DenseCLIPCheckpointer(
        model,
        cfg.train.output_dir,
        text_weights=cfg.train.get("text_weights", ""),
        backbone_weights=cfg.train.get("backbone_weights", ""),
        trainer=weakref.proxy(trainer),
    )
    main, written = comm.is_main_process(), (cfg.train.output_dir, cfg.train.max_iter)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate_lazily(cfg, parallel)),
            hooks.PeriodicWriter(default_writers(*written), cfg.train.log_period) if main else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)


def _groups_of(optimizer: DictConfig) -> DictConfig:
    """The part of an optimizer's config that has the parameters, in whatever it is wrapped."""
    return optimizer if "params" in optimizer else _groups_of(optimizer.optimizer)
