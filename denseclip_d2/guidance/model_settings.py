from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..utils.old_keys import update_key
from .features import guidance_of


def _setting(key: str) -> Any:
    return field(default=None, metadata={"key": key})


@dataclass(frozen=True)
class ModelSettings:
    """The settings that change a model's outputs and show in no name or shape of its tensors.

    None stands for a setting that the model does not have, or that is not known.
    """

    pixel_mean: tuple[float, ...] | None = _setting("MODEL.PIXEL_MEAN")
    pixel_std: tuple[float, ...] | None = _setting("MODEL.PIXEL_STD")
    fpn_p7_relu: bool | None = _setting("MODEL.DENSECLIP.FPN_P7_RELU")
    position: str | None = _setting("MODEL.DENSECLIP.VISUAL.POS_EMBED")
    res5_dilation: int | None = _setting("MODEL.DENSECLIP.VISUAL.RES5_DILATION")
    dense: str | None = _setting("MODEL.DENSECLIP.VISUAL.DENSE_FEATURES")
    tau: float | None = _setting("MODEL.DENSECLIP.SCORE_MAP.TAU")
    concat: str | None = _setting("MODEL.DENSECLIP.SCORE_MAP.CONCAT")
    concat_logits: bool | None = _setting("MODEL.DENSECLIP.SCORE_MAP.CONCAT_LOGITS")
    prompt_mode: str | None = _setting("MODEL.DENSECLIP.PROMPT.MODE")
    precomputed_text: bool | None = _setting("MODEL.DENSECLIP.PROMPT.PRECOMPUTED")
    decoder_heads: int | None = _setting("MODEL.DENSECLIP.CONTEXT_DECODER.HEADS")

    @classmethod
    def from_config(cls, cfg: CfgNode, *, guided: bool) -> "ModelSettings":
        """
        Args:
            guided: False for a model without language.
        """
        settings = cls.from_keys({key: reduce(getattr, key.split("."), cfg) for key in _KEYS.values()})
        if "retinanet" not in cfg.MODEL.BACKBONE.NAME:
            settings = replace(settings, fpn_p7_relu=None)
        if not guided:
            language = (
                "dense",
                "tau",
                "concat",
                "concat_logits",
                "prompt_mode",
                "precomputed_text",
                "decoder_heads",
            )
            settings = replace(settings, **dict.fromkeys(language))
        return settings

    @classmethod
    def from_keys(cls, values: Mapping[str, Any]) -> "ModelSettings":
        """Return the settings of a file: values by config key, of which others do not count."""
        values = {update_key(key): value for key, value in values.items()}
        known = {name: values[key] for name, key in _KEYS.items() if key in values}
        for name in known.keys() & {"pixel_mean", "pixel_std"}:
            known[name] = tuple(round(x, 4) for x in known[name])
        return cls(**known)

    def by_key(self) -> dict[str, Any]:
        """Return the settings that are not None, by config key, as JSON has them."""
        values = {key: getattr(self, name) for name, key in _KEYS.items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}

    def differences(self, other: "ModelSettings") -> str:
        """Return the settings that both have and that differ, as "KEY mine instead of other"."""
        mine, theirs = self.by_key(), other.by_key()
        both = [key for key in mine if key in theirs and mine[key] != theirs[key]]
        return ", ".join(f"{key} {mine[key]} instead of {theirs[key]}" for key in both)


_KEYS = {setting.name: setting.metadata["key"] for setting in fields(ModelSettings)}


def settings_of(model: nn.Module) -> ModelSettings:
    """Return the settings of a model; those of a model that was built without a config are not known."""
    settings, guided = (
        getattr(model.get_submodule("backbone"), "settings", ModelSettings()),
        guidance_of(model),
    )
    return replace(settings, precomputed_text=guided.language.precomputed) if guided else settings
