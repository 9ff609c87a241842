from collections.abc import Sequence
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

from ..visual import EmbeddedBackbone, VisualEncoder


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD by the recipe: a slower visual encoder, the gradient's norm clipped over the whole model.

    Contexts have a factor of their own. Frozen parameters, such as the text encoder's, are left out.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" clips the global norm; "norm" and "value" are
    Detectron2's, by parameter.

    Raises:
        ValueError: an unknown ``SOLVER.OPTIMIZER``.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        visual_multiplier=solver.VISUAL_MULTIPLIER,
        context_multiplier=solver.CONTEXT_MULTIPLIER,
        no_weight_decay=solver.NO_WEIGHT_DECAY,
    )
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
    return clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)


def clip_full_model(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> torch.optim.Optimizer:
    """Let an optimizer clip the gradient's norm over all its parameters before each step."""
    clipper = partial(nn.utils.clip_grad_norm_, max_norm=max_norm, norm_type=norm_type)
    optimizer.__class__ = _generate_optimizer_class_with_gradient_clipping(
        type(optimizer), global_clipper=clipper
    )
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    visual_multiplier: float = 0.1,
    context_multiplier: float = 1.0,
    no_weight_decay: Sequence[str] = (),
    **rates,
) -> list[dict]:
    """What trains, by rate and decay.

    Args:
        visual_multiplier, context_multiplier: factors of the visual encoder's and the contexts' rates.
        no_weight_decay: shell patterns on the names of parameters that do not decay.
        rates: as for Detectron2's ``get_default_optimizer_params``: ``base_lr``, ``weight_decay`` and so on.
    """
    # A backbone without a CLIP is pre-trained; its embedding is new, and learns as new layers do.
    visual = tuple(
        f"{name}.backbone." if isinstance(module, EmbeddedBackbone) else f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, VisualEncoder)
    )

    def factor(name: str) -> float:
        if name.endswith("language.contexts"):
            return context_multiplier
        return visual_multiplier if name.startswith(visual) else 1.0

    groups = get_default_optimizer_params(model, lr_factor_func=factor, **rates)
    undecayed = [
        {"params": [parameter], "weight_decay": 0.0}
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(fnmatch(name, pattern) for pattern in no_weight_decay)
    ]
    return reduce_param_groups(groups + undecayed)
