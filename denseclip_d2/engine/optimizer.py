from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

from ..visual import ProjectedBackbone, VisualEncoder

GradientClipper = Callable[[torch.optim.Optimizer], None]
"""A function that clips, in place, the gradients of an optimizer's parameters."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW, AdamW with a state of 8 bits, or SGD over the parameters that train.

    The learning rates are those of ``SOLVER``. The optimizer does not clip gradients:
    :func:`build_gradient_clipper` does.

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
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, **rates)
    if solver.OPTIMIZER == "ADAMW8BIT":
        return _adamw_8bit(groups, **rates)
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **rates)
    raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}. Set it to 'ADAMW', 'ADAMW8BIT' or 'SGD'.")


def _adamw_8bit(groups: list[dict], **rates: float) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # an extra

    class ChannelsLastAdamW8bit(AdamW8bit):
        """AdamW8bit that keeps the memory layout of weights. Its own steps make them contiguous."""

        def update_step(self, group: dict, p: nn.Parameter, *index: int) -> None:
            weights = p.data
            super().update_step(group, p, *index)
            if not weights.is_contiguous():
                p.data = weights.copy_(p.data)

    return ChannelsLastAdamW8bit(groups, **rates)


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper | None:
    """Return the function that clips gradients as ``SOLVER.CLIP_GRADIENTS`` says, or None."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    return partial(
        clip_gradients, clip_type=clip.CLIP_TYPE, clip_value=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE
    )


def clip_gradients(
    optimizer: torch.optim.Optimizer, *, clip_type: str, clip_value: float, norm_type: float = 2.0
) -> None:
    """Clip the gradients of an optimizer's parameters in place.

    Args:
        clip_type: "full_model" limits the norm over all parameters. "norm" limits the norm of each
            parameter, and "value" each number, as in Detectron2.
        clip_value: the limit.
        norm_type: the order of the norm.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if clip_type == "full_model":
        nn.utils.clip_grad_norm_(parameters, clip_value, norm_type)
    elif clip_type == "value":
        nn.utils.clip_grad_value_(parameters, clip_value)
    else:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)


def parameter_groups(
    model: nn.Module,
    *,
    visual_multiplier: float = 0.1,
    context_multiplier: float = 1.0,
    no_weight_decay: Sequence[str] = (),
    **rates,
) -> list[dict]:
    """Return the parameters that train, grouped by learning rate and weight decay.

    Args:
        visual_multiplier, context_multiplier: factors of the learning rates of visual encoder and contexts.
        no_weight_decay: shell patterns of the names of parameters without weight decay.
        rates: as for Detectron2's ``get_default_optimizer_params``: ``base_lr``, ``weight_decay`` and so on.
    """
    # A backbone without a CLIP is pretrained. Its embedding layer is new and learns like other new layers.
    visual = tuple(
        f"{name}.backbone." if isinstance(module, ProjectedBackbone) else f"{name}."
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
