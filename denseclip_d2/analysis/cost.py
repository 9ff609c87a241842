"""Parameters, FLOPs and activations of a model by module, with the frozen text encoder separate.

One multiply-add is one FLOP, as in fvcore and the paper. fvcore does not count torch's fused attention; the
handles for it are here.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, parameter_count
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from tabulate import tabulate
from torch import Tensor, nn

from ..language import TextEncoder
from ..meta_arch.preprocess import seen_by_backbone
from ..meta_arch.text_heads import box_predictions, dense_predictions

# As in mmdet and the paper: the box head on 1000 proposals, the mask head on 100.
NUM_PROPOSALS, NUM_DETECTIONS = 1000, 100

# Column title and unit of each quantity.
TASKS = {
    "parameter": ("parameters (M)", 1e6),
    "flop": ("FLOPs (G)", 1e9),
    "activation": ("activations (M)", 1e6),
}


@dataclass(frozen=True)
class Count:
    """One quantity of a model. Only ``text_encoder`` includes the text encoder.

    Attributes:
        by_module: by module name; "" is the whole model.
        text_encoder: the text encoder's, 0 if there is none.
        by_operator: by kind of operator.
        not_counted: how often each operator without a count ran.
    """

    by_module: dict[str, int]
    text_encoder: int = 0
    by_operator: dict[str, int] = field(default_factory=dict)
    not_counted: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.by_module[""]


def analyze(cfg: CfgNode, tasks: list[str], size: tuple[int, int]) -> dict[str, Count]:
    """Count the quantities in ``tasks`` (keys of :data:`TASKS`) of a config's model, with random weights.

    FLOPs and activations are those of inference on one image. They do not depend on its content: a two-stage
    detector gets 1000 proposals and 100 detections. A segmentor runs on the whole image once.

    Args:
        size: height and width of the image, before the model's padding.

    Raises:
        ValueError: this kind of model cannot be counted.
    """
    model = build_model(cfg).eval()
    if set(tasks) != {"parameter"}:
        _check_countable(model, cfg.MODEL.META_ARCHITECTURE)
    return {
        task: _count_parameters(model) if task == "parameter" else _count(task, model, size) for task in tasks
    }


def format_table(counts: dict[str, Count], depth: int) -> str:
    """Return a table of the modules down to ``depth``, without zero rows, and of the text encoder."""
    columns = [(count, TASKS[task][1]) for task, count in counts.items()]
    has_text_encoder = any(count.text_encoder for count, _ in columns)
    whole = "all but the text encoder" if has_text_encoder else "all"
    names = dict.fromkeys(name for count, _ in columns for name in count.by_module)
    rows = []
    for name in names:
        values = [count.by_module.get(name, 0) / unit for count, unit in columns]
        if any(values) and len(name.split(".")) <= depth:
            rows.append([name or whole, *values])
    if has_text_encoder:
        rows.append(["text encoder, frozen", *(count.text_encoder / unit for count, unit in columns)])
    return tabulate(rows, ["module", *(TASKS[task][0] for task in counts)], tablefmt="github", floatfmt=".2f")


def flop_analysis(model: nn.Module, inputs: tuple[Tensor, ...]) -> FlopCountAnalysis:
    """Return fvcore's analysis of ``model(*inputs)``, with fused attention counted."""
    return FlopCountAnalysis(model, inputs).set_op_handle(
        "aten::scaled_dot_product_attention", _attention_flops,
        "aten::_native_multi_head_attention", _multi_head_attention_flops,
    )  # fmt: skip


def activation_analysis(model: nn.Module, inputs: tuple[Tensor, ...]) -> ActivationCountAnalysis:
    """Return fvcore's analysis of ``model(*inputs)``: outputs of convolutions, products and attention."""
    return ActivationCountAnalysis(model, inputs).set_op_handle(
        "aten::scaled_dot_product_attention", generic_activation_jit(),
        "aten::_native_multi_head_attention", lambda inputs, outputs: 5 * prod(get_shape(inputs[0])),
    )  # fmt: skip


def _attention_flops(inputs: list, outputs: list) -> int:
    # (..., N, E), (..., M, E), (..., M, V): N * M products of queries with keys, and as many weighted values.
    query, key, value = map(get_shape, inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _multi_head_attention_flops(inputs: list, outputs: list) -> int:
    # nn.MultiheadAttention in inference, self-attention only: four projections, and attention.
    batch, tokens, width = get_shape(inputs[0])
    return batch * (4 * tokens * width * width + 2 * tokens * tokens * width)


_ANALYSES = {"flop": flop_analysis, "activation": activation_analysis}


def _count_parameters(model: nn.Module) -> Count:
    counts, modules = parameter_count(model), dict(model.named_modules())
    return _without_text_encoder(model, {name: n for name, n in counts.items() if name in modules})


def _count(task: str, model: nn.Module, size: tuple[int, int]) -> Count:
    image = torch.rand(3, *size, device=next(model.parameters()).device)
    adapter = TracingAdapter(model, image, inference_func=_run_layers)
    analysis = _ANALYSES[task](adapter, adapter.flattened_inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # The adapter has the detector as `model`.
    by_module = {name.removeprefix("model").removeprefix("."): n for name, n in analysis.by_module().items()}
    by_operator, not_counted = analysis.by_operator().copy(), analysis.unsupported_ops().copy()
    for name in _text_encoders(model):
        by_operator -= analysis.by_operator(f"model.{name}")
        not_counted -= analysis.unsupported_ops(f"model.{name}")
    return _without_text_encoder(model, by_module, dict(by_operator), dict(not_counted))


def _text_encoders(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, TextEncoder)]


def _without_text_encoder(model: nn.Module, by_module: dict[str, int], *details: dict[str, int]) -> Count:
    counts, total = Counter(by_module), 0
    for encoder in _text_encoders(model):
        cost = by_module[encoder]
        total += cost
        parts = encoder.split(".")
        counts.subtract({".".join(parts[:i]): cost for i in range(len(parts))})
        for name in by_module:
            if f"{name}.".startswith(f"{encoder}."):
                del counts[name]
    return Count(dict(counts), total, *details)


def _check_countable(model: nn.Module, name: str) -> None:
    two_stage = (
        isinstance(model, GeneralizedRCNN)
        and isinstance(model.proposal_generator, RPN)
        and isinstance(model.roi_heads, StandardROIHeads)
        and not isinstance(model.roi_heads, CascadeROIHeads)
    )
    # Children that _run_layers does not run, such as PanopticFPN's other head.
    others = {name for name, _ in model.named_children()} - {"backbone", "head", "anchor_generator"}
    if two_stage:
        others -= {"proposal_generator", "roi_heads"}
    if isinstance(model, SemanticSegmentor):
        others -= {"sem_seg_head"}
    if others or not (isinstance(model, DenseDetector | SemanticSegmentor) or two_stage):
        raise ValueError(
            f"FLOPs and activations of MODEL.META_ARCHITECTURE {name!r} cannot be counted. RetinaNet's, "
            "SemanticSegmentor's, and GeneralizedRCNN's with RPN and StandardROIHeads can. "
            "--tasks parameter works for all."
        )


def _tensors(features: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in features.items() if isinstance(x, Tensor)}


def _run_layers(model: GeneralizedRCNN | DenseDetector | SemanticSegmentor, image: Tensor) -> list:
    """Run every layer of a model once, without NMS, whose output would decide the work of the heads.

    Args:
        image: (3, H, W).
    """

    if isinstance(model, SemanticSegmentor):
        features = model.backbone(seen_by_backbone(model, [{"image": image}]))
        return [_tensors(features), model.sem_seg_head(features)[0]]
    features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
    if isinstance(model, DenseDetector):
        return [_tensors(features), dense_predictions(model, features)]
    rpn, heads = model.proposal_generator, model.roi_heads
    proposed = rpn.rpn_head([features[name] for name in rpn.in_features])
    # The boxes do not matter: pooling gives all regions the same size.
    boxes = Boxes(image.new_zeros(NUM_PROPOSALS, 4))
    detections = Instances(image.shape[1:])
    detections.pred_boxes = boxes[:NUM_DETECTIONS]
    detections.pred_classes = boxes.tensor[:NUM_DETECTIONS, 0].long()
    masks = heads.forward_with_given_boxes(features, [detections])
    return [_tensors(features), proposed, box_predictions(heads, features, [boxes]), masks]
