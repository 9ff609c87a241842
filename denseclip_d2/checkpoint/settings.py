"""What has a say in a model's outputs and shows in no tensor's name or shape."""

from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from ..guidance import guidance_of
from ..guidance.fpn import LastLevelP6P7WithoutReLU

PREFIX = "MODEL.DENSECLIP"


def settings_of(model: nn.Module) -> dict:
    """Config keys, and the values that a model was built with."""
    settings: dict[str, object] = {}
    for key, name in (("MODEL.PIXEL_MEAN", "pixel_mean"), ("MODEL.PIXEL_STD", "pixel_std")):
        if not (values := model.get_buffer(name)).is_meta:
            settings[key] = [round(x, 4) for x in values.flatten().tolist()]
    backbone, guided = model.get_submodule("backbone"), guidance_of(model)
    fpn = getattr(guided, "fpn", backbone)
    top_block = getattr(fpn, "top_block", None)
    if isinstance(top_block, LastLevelP6P7):
        settings[f"{PREFIX}.FPN_P7_RELU"] = not isinstance(top_block, LastLevelP6P7WithoutReLU)
    visual = guided.visual if guided else getattr(backbone, "bottom_up", backbone)
    positions = getattr(visual, "attnpool", None) or visual
    if hasattr(positions, "position"):
        settings[f"{PREFIX}.VISUAL.POSITION"] = positions.position
    if hasattr(visual, "res5_dilation"):
        settings[f"{PREFIX}.VISUAL.RES5_DILATION"] = visual.res5_dilation
    if guided:
        settings[f"{PREFIX}.VISUAL.DENSE"] = positions.dense
        language = guided.language
        settings[f"{PREFIX}.SCORE_MAP.TAU"] = guided.tau
        settings[f"{PREFIX}.SCORE_MAP.CONCAT_LOGITS"] = guided.concat_logits
        settings[f"{PREFIX}.PROMPT.MODE"] = language.mode
        settings[f"{PREFIX}.PROMPT.FOLDED"] = language.folded
        if hasattr(language, "context_decoder"):
            settings[f"{PREFIX}.CONTEXT_DECODER.HEADS"] = language.context_decoder.num_heads
    return settings


def differing(expected: dict, model: nn.Module) -> str:
    """The settings in which a model is not as expected, as a person would set them; empty: none."""
    settings = settings_of(model) if expected else {}
    other = {key: value for key, value in expected.items() if key in settings and settings[key] != value}
    return ", ".join(f"{key} {value} instead of {settings[key]}" for key, value in other.items())
