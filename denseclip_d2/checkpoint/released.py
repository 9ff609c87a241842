"""Conversion of the authors' checkpoints, which MMDetection and MMSegmentation wrote."""

import re
from collections.abc import Callable

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet, SemanticSegmentor
from torch import Tensor, nn

from ..guidance import guidance_of
from ..guidance.model_settings import ModelSettings, settings_of
from ..visual import CLIPViT
from .clip import check_gelu, prefix_of

ARCHITECTURES = {
    "bbox_head.retina_cls.weight": ("RetinaNet", RetinaNet),
    "roi_head.bbox_head.fc_cls.weight": ("Mask R-CNN", GeneralizedRCNN),
    "decode_head.conv_seg.weight": ("Semantic FPN", SemanticSegmentor),
}
# our_name replaces {fpn}, {visual} and the stages of the pyramid, finest first.
_NAMES: dict[str, str | Callable[[re.Match], str]] = {
    r"(contexts|gamma|text_encoder|context_decoder)": r"backbone.language.\1",
    r"backbone": "{visual}",
    r"neck\.lateral_convs\.(\d)\.conv": lambda m: f"{{fpn}}.fpn_lateral{{{m[1]}}}",
    r"neck\.fpn_convs\.([0-3])\.conv": lambda m: f"{{fpn}}.fpn_output{{{m[1]}}}",
    r"bbox_head\.cls_convs\.(\d+)\.conv": lambda m: f"head.cls_subnet.{2 * int(m[1])}",
    r"bbox_head\.reg_convs\.(\d+)\.conv": lambda m: f"head.bbox_subnet.{2 * int(m[1])}",
    r"bbox_head\.retina_cls": "head.cls_score",
    r"bbox_head\.retina_reg": "head.bbox_pred",
    r"rpn_head\.rpn_conv": "proposal_generator.rpn_head.conv",
    r"rpn_head\.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    r"rpn_head\.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    r"roi_head\.bbox_head\.shared_fcs\.(\d)": lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}",
    r"roi_head\.bbox_head\.fc_cls": "roi_heads.box_predictor.cls_score",
    r"roi_head\.bbox_head\.fc_reg": "roi_heads.box_predictor.bbox_pred",
    r"roi_head\.mask_head\.convs\.(\d)\.conv": lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}",
    r"roi_head\.mask_head\.upsample": "roi_heads.mask_head.deconv",
    r"roi_head\.mask_head\.conv_logits": "roi_heads.mask_head.predictor",
    r"decode_head\.scale_heads\.(\d)\.(\d+)\.conv": lambda m: f"sem_seg_head.p{{{m[1]}}}.{m[2]}",
    r"decode_head\.scale_heads\.(\d)\.(\d+)\.bn": lambda m: f"sem_seg_head.p{{{m[1]}}}.{m[2]}.norm",
    r"decode_head\.conv_seg": "sem_seg_head.predictor",
}


def is_released(weights: dict[str, Tensor]) -> bool:
    """Return whether weights have the names of the authors' checkpoints."""
    return "neck.lateral_convs.0.conv.weight" in weights


def our_name(name: str, *, retinanet: bool, plain: bool) -> str:
    """Return this project's name of a released parameter, or the released name if there is no other.

    Args:
        retinanet: whether the model is a RetinaNet, with a pyramid from stride 8 to P7.
        plain: whether the model is without language.
    """
    fpn, visual = ("backbone", "backbone.bottom_up") if plain else ("backbone.fpn", "backbone.visual")
    if retinanet and (match := re.match(r"neck\.fpn_convs\.([34])\.conv", name)):
        return name.replace(match[0], f"{fpn}.top_block.p{int(match[1]) + 3}")
    pattern = next((p for p in _NAMES if re.match(p, name)), None)
    if pattern is None:
        return name
    stages = range(3, 6) if retinanet else range(2, 6)
    return re.sub(f"^{pattern}", _NAMES[pattern], name).format(*stages, fpn=fpn, visual=visual)


def convert_released(
    weights: dict[str, Tensor], model: nn.Module, path: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a released checkpoint for ``model``, so that the outputs are the authors'.

    Anchors get Detectron2's order. The text encoder's positions are padded to CLIP's 77. The class embedding
    that the released ViT adds a second time is added to its first position.

    Returns: weights under this project's names; what was done to some of them, by name.
    Raises:
        ValueError: ``model`` is another system, or a setting is not the released one.
    """
    retinanet, plain = "bbox_head.retina_cls.weight" in weights, "gamma" not in weights
    _check_architecture(weights, model, path, plain)
    _check_settings(weights, model, path)
    check_gelu(model, path, quick_gelu=True)
    renamed = {our_name(name, retinanet=retinanet, plain=plain): tensor for name, tensor in weights.items()}
    return renamed, {
        **_reorder_anchors(renamed),
        **_fill_text_positions(renamed, model, path),
        **_add_class_embedding(renamed, model),
    }


def _check_architecture(weights: dict[str, Tensor], model: nn.Module, path: str, plain: bool) -> None:
    name, kind = next((a for key, a in ARCHITECTURES.items() if key in weights), ("model", ()))
    if isinstance(model, kind) and bool(guidance_of(model)) != plain:
        return
    raise ValueError(
        f"{path!r} is a released {name} on {'CLIP without language' if plain else 'DenseCLIP'}, but the "
        f"config's model is {type(model).__name__} on {type(model.backbone).__name__}. Use the config that "
        "MODEL_ZOO.md lists for it."
    )


def _check_settings(weights: dict[str, Tensor], model: nn.Module, path: str) -> None:
    """Check the settings with whose other values released weights run and give wrong outputs."""
    segmentation = "decode_head.conv_seg.weight" in weights
    expected = ModelSettings(
        pixel_mean=(122.7709, 116.746, 104.0937),
        pixel_std=(68.5005, 66.6322, 70.3232),
        fpn_p7_relu=False,
        position="interpolate" if segmentation else "crop",
        dense="attention",
        tau=0.07,
        concat_logits=not segmentation,
        prompt_mode="post",
        decoder_heads=4,
    )
    if other := expected.differences(settings_of(model)):
        raise ValueError(f"{path!r} is a released checkpoint, whose outputs need {other}.")


def _reorder_anchors(weights: dict[str, Tensor]) -> dict[str, str]:
    """Reorder the 9 anchors of a location: ratio by ratio in MMDetection, size by size in Detectron2."""
    done = {}
    for layer in ("head.cls_score", "head.bbox_pred"):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in weights:
                weights[name] = weights[name].unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)
                done[name] = "anchors from ratio by ratio to size by size"
    return done


def _fill_text_positions(weights: dict[str, Tensor], model: nn.Module, path: str) -> dict[str, str]:
    name = "backbone.language.text_encoder.positional_embedding"
    guided = guidance_of(model)
    if name not in weights or guided is None or guided.language.precomputed:
        return {}
    encoder, prompts = guided.language.encoder_and_prompts()
    contexts, kept = guided.language.contexts, len(weights[name])
    needed = prompts.shape[1] + (0 if contexts is None else contexts.shape[1])
    available = encoder.context_length
    if needed > kept:
        raise ValueError(
            f"{path!r} has {kept} positions for text, but the prompts need {needed}. "
            f"Set MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS to {prompts.shape[1] + kept - needed}."
        )
    if kept >= available:
        return {}
    unused = weights[name].new_zeros(available - kept, weights[name].shape[1])
    weights[name] = torch.cat([weights[name], unused])
    return {name: f"from {kept} to {available} positions; those added are never read"}


def _add_class_embedding(weights: dict[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Add the class embedding to its position: the released ViT adds it there and as the token."""
    prefix = prefix_of(model, CLIPViT)
    name, embedding = f"{prefix}positional_embedding", f"{prefix}class_embedding"
    if prefix is None or embedding not in weights:
        return {}
    if model.get_submodule(prefix.removesuffix(".")).double_class_embedding:
        return {}
    weights[name] = weights[name].clone()
    weights[name][0] += weights[embedding]
    return {name: "class embedding added to the first position, as the released ViT does"}
