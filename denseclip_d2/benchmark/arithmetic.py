"""What language would cost if each multiply-add took as long as those of plain CLIP."""

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ..analysis.cost import analyze
from .measure import Row
from .settings import Case, with_value

ARITHMETIC = "arithmetic"
"""The name of its rows."""


def arithmetic(rows: Sequence[Row], case: Case, configs: Mapping[str, CfgNode]) -> Row:
    """CLIP's time by DenseCLIP's multiply-adds over CLIP's, counted as ``tools/analyze_model.py`` does.

    Inference has its text from before. A step of training has three times the multiply-adds of a forward
    pass, and encodes the text once a batch, of which, frozen, only the gradients of inputs are computed. What
    is computed again to save memory is not in it.

    Args:
        rows: of "inference" or "training".
        configs: of "CLIP" and "DenseCLIP", for the case's number of classes.

    Raises:
        ValueError: the layers of this kind of detector cannot be counted.
    """
    clip = next(row for row in rows if row.name == "CLIP")
    training = clip.section == "training"
    flops = {name: _count(configs[name], case, training=training) for name in ("CLIP", "DenseCLIP")}
    ratio = flops["DenseCLIP"] / flops["CLIP"]
    return Row(
        clip.section, clip.case, ARITHMETIC, ratio * clip.milliseconds, ratio, (ratio, ratio),
        numbers=clip.numbers,
    )  # fmt: skip


def _count(cfg: CfgNode, case: Case, *, training: bool) -> int:
    count = analyze(with_value(cfg, "MODEL.DEVICE", "cpu"), ["flop"], case.size)["flop"]
    return 3 * case.batch * count.total + 2 * count.text_encoder if training else case.batch * count.total
