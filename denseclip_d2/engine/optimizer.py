from fnmatch import fnmatch
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import (
    _generate_optimizer_class_with_gradient_clipping,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from torch import nn

from ..visual import VisualEncoder


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD by the recipe: a slower visual encoder, the gradient's norm clipped over the whole model.

    Contexts have a factor of their own. Frozen parameters, such as the text encoder's, are left out.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" clips the global norm; "norm" and "value" are
    Detectron2's, by parameter.

    Raises:
        ValueError: an unknown ``SOLVER.OPTIMIZER``.
    """
    solver, groups = cfg.SOLVER, _parameter_groups(cfg, model)
    rates = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, **rates)
    elif solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **rates)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; it can be 'ADAMW' or 'SGD'.")
    clip = solver.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)
    clipper = partial(nn.utils.clip_grad_norm_, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)
    optimizer.__class__ = _generate_optimizer_class_with_gradient_clipping(
        type(optimizer), global_clipper=clipper
    )
    return optimizer


def _parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    solver = cfg.SOLVER
    visual = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, VisualEncoder))

    def factor(name: str) -> float:
        if name.endswith("language.contexts"):
            return solver.CONTEXT_MULTIPLIER
        return solver.VISUAL_MULTIPLIER if name.startswith(visual) else 1.0

    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )
    undecayed = [
        {"params": [parameter], "weight_decay": 0.0}
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(fnmatch(name, pattern) for pattern in solver.NO_WEIGHT_DECAY)
    ]
    return reduce_param_groups(groups + undecayed)
