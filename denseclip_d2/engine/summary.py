import re
from fnmatch import fnmatch
from textwrap import indent
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..builder import resolve_sync_bn, sync_bn_warning
from ..config.checks import leaves
from ..data.unused_annotations import in_words

# Keys that change the result of a training by rounding at most.
_NEUTRAL = (
    "CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "DATASETS.CHECK_IMAGES", "MODEL.CHANNELS_LAST",
    "MODEL.COMPILE", "MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING", "MODEL.DEVICE",
    "OUTPUT_DIR", "SOLVER.BEST_METRIC", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.MAX_TO_KEEP",
    "SOLVER.REFERENCE_*", "TEST.*", "VIS_PERIOD",
)  # fmt: skip


def summarize_run(
    cfg: CfgNode, recipe: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any
) -> dict[str, list]:
    """Return what a run trains, as tables to read before the run takes days.

    Args:
        cfg: the config as trained, scaled to the number of processes.
        recipe: the config to name overrides from, such as the config file without the command line.
        loader: the loader of the training images.

    Returns: ``settings`` (rows of name and value), ``overrides`` (lines), and ``parameter_groups`` (rows,
        the first of which is the head).
    """
    return {
        "settings": _settings(cfg, recipe, loader),
        "overrides": overrides_of(recipe, cfg),
        "parameter_groups": _groups(model, optimizer),
    }


def format_summary(summary: dict[str, list]) -> str:
    """Return the tables of :func:`summarize_run` as text."""
    return "\n".join(
        [
            "This run:",
            indent(tabulate(summary["settings"], tablefmt="plain"), "  "),
            "Overrides of the config file:",
            *(f"  {line}" for line in summary["overrides"] or ["none"]),
            "Learning rates, weight decays and what they are for:",
            indent(tabulate(summary["parameter_groups"], tablefmt="plain", headers="firstrow"), "  "),
        ]
    )


def rows_of(table: str) -> list[list[str]]:
    """Return the rows of a plain table of names and values, such as Detectron2's of the environment."""
    lines = [line.strip() for line in table.splitlines()]
    return [re.split(r"\s{2,}", line, maxsplit=1) for line in lines if line.strip("- ")]


def count_images(loader: Any) -> int:
    """Return the number of images of a loader. Detectron2 keeps them in nested ``dataset`` fields."""
    while hasattr(loader, "dataset"):
        loader = loader.dataset
    return len(loader)


def _settings(cfg: CfgNode, recipe: CfgNode, loader: Any) -> list[tuple[str, str]]:
    num_images = count_images(loader)
    unused = getattr(loader, "unused", {})
    solver, world_size = cfg.SOLVER, comm.get_world_size()
    scaled = ""
    if recipe.SOLVER.REFERENCE_WORLD_SIZE not in (0, world_size):
        old = recipe.SOLVER
        scaled = f" (scaled from {old.BASE_LR:g} for {old.REFERENCE_WORLD_SIZE} processes)"
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / max(num_images, 1)
    norm = resolve_sync_bn(cfg).MODEL.DENSECLIP.VISUAL.NORM
    return [
        ("processes", f"{world_size} ({comm.get_local_size()} a machine), on {cfg.MODEL.DEVICE}"),
        ("batch", f"{solver.IMS_PER_BATCH} images, {solver.IMS_PER_BATCH // world_size} a process"),
        ("learning rate", f"{solver.BASE_LR:g}{scaled}"),
        ("iterations", f"{solver.MAX_ITER}: {epochs:.1f} epochs of {num_images} images"),
        *([("objects left out", in_words(unused))] if unused else []),
        *_schedule(cfg),
        ("precision", f"{solver.AMP.PRECISION}, mixed" if solver.AMP.ENABLED else "float32"),
        ("visual norm", norm),
    ]


def _schedule(cfg: CfgNode) -> list[tuple[str, str]]:
    """Return the schedule of own data, which depends on their number of images; else nothing."""
    if not (cfg.DATASETS.CUSTOM.TRAIN or cfg.DATASETS.CUSTOM.SEMANTIC):
        return []
    solver, period = cfg.SOLVER, cfg.TEST.EVAL_PERIOD
    steps = ", ".join(map(str, solver.STEPS)) or "never"
    often = f"every {period}, and at the end" if period else "at the end"
    images = f"for {solver.REFERENCE_IMAGES} images" if solver.REFERENCE_IMAGES else "the config's own"
    return [
        ("schedule", f"{images}: warm-up {solver.WARMUP_ITERS}, lower rate at {steps}, evaluation {often}")
    ]


def overrides_of(recipe: CfgNode, cfg: CfgNode) -> list[str]:
    """Return a line for each difference of ``cfg`` from ``recipe`` that changes what is learned."""
    old = dict(leaves(recipe))
    lines = [
        f"{key}: {value!r} instead of {old.get(key)!r}"
        for key, value in leaves(cfg)
        if value != old.get(key) and not any(fnmatch(key, pattern) for pattern in _NEUTRAL)
    ]
    rates = [node.SOLVER.BASE_LR / node.SOLVER.IMS_PER_BATCH for node in (cfg, recipe)]
    ratio = rates[0] / rates[1] if rates[1] else 1.0
    if abs(ratio - 1) > 1e-6:
        lines.append(f"learning rate for each image of the batch: {ratio:.3g} times the recipe's")
    if loss := sync_bn_warning(cfg):
        lines.append(loss)
    return lines


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple]:
    names = {parameter: name.removeprefix("module.") for name, parameter in model.named_parameters()}
    rows: list[tuple] = [("learning rate", "weight decay", "tensors", "parameters", "of")]
    for group in optimizer.param_groups:
        # The warm-up has lowered "lr" already.
        rate = group.get("initial_lr", group["lr"])
        rows.append((f"{rate:g}", f"{group['weight_decay']:g}", *_extent(names, group["params"])))
    frozen = [parameter for parameter in names if not parameter.requires_grad]
    return [*rows, ("frozen", "", *_extent(names, frozen))]


def _extent(names: dict[nn.Parameter, str], parameters: list[nn.Parameter]) -> tuple[int, str, str]:
    parts = sorted({".".join(names[p].split(".")[:2]) for p in parameters})
    return len(parameters), f"{sum(p.numel() for p in parameters):,}", ", ".join(parts)
