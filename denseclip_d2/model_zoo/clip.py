"""The config of a CLIP alone, which labels pixels by names without training."""

from collections.abc import Sequence

from detectron2.config import CfgNode

from ..checkpoint.clip_architecture import facts_of
from ..clip_models import LOCAL, OPENCLIP, get_clip_architecture, local_weights, pixels_of
from ..config import prepare_run
from ..utils.old_keys import update_pairs
from ..visual import encoder_class, untrained_dense_feature
from .zoo import get_config_file

CONFIG = "WithoutTraining/clip.yaml"
"""The config by :func:`get_config_file`, of OpenAI's ViT-B/16."""

BACKGROUND = "background"
"""The class that :func:`get_clip_config` adds."""

CLIP_MODEL = "MODEL.DENSECLIP.CLIP_MODEL"


def get_clip_config(
    weights: str,
    names: Sequence[str] = (),
    *,
    background: Sequence[str] | float | None = None,
    opts: Sequence = (),
) -> CfgNode:
    """Return the config of a CLIP alone: see :meth:`Predictor.from_clip`.

    Args:
        names: empty: those of ``DATASETS.TEST``.

    Raises:
        ValueError, FileNotFoundError: see :func:`clip_opts` and :func:`prepare_run`.
    """
    pairs: list = []
    if isinstance(background, int | float):
        pairs += ["MODEL.DENSECLIP.SCORE_MAP.BACKGROUND_THRESHOLD", float(background)]
    elif background is not None:
        pairs += ["MODEL.DENSECLIP.STUFF_NAMES", tuple(background)]
    if names:
        added = () if background is None or BACKGROUND in names else (BACKGROUND,)
        pairs += ["MODEL.DENSECLIP.CLASS_NAMES", (*names, *added), "DATASETS.TEST", ()]
    return prepare_run(get_config_file(CONFIG), clip_opts(weights, [*pairs, *opts])).cfg


def clip_opts(weights: str, opts: Sequence = ()) -> list:
    """Return the ``KEY VALUE`` pairs over :data:`CONFIG` that a CLIP needs.

    Windows have the size of the images that the CLIP was trained on. Images have a shorter side of one and a
    half windows, and windows overlap by half.

    Args:
        weights: as in ``MODEL.WEIGHTS``, or ``local-dir:`` and a folder of open_clip.
        opts: pairs that come after these. One of them may name the architecture; otherwise the address of the
            weights names it, or their shapes tell.

    Raises:
        ValueError, FileNotFoundError: see :func:`facts_of` and :func:`local_weights`.
    """
    opts = update_pairs(opts)
    given = dict(zip(opts[::2], opts[1::2], strict=True)).get(CLIP_MODEL, "")
    if weights.startswith(LOCAL):
        given, weights = given or weights, local_weights(weights)
    name, tau = facts_of(weights, given)
    architecture = get_clip_architecture(name)
    cells, size = encoder_class(architecture).local_cells, architecture.vision.image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = pixels_of(name, weights.rpartition("/")[2] if weights.startswith(OPENCLIP) else "")
    return [
        "MODEL.WEIGHTS", weights,
        CLIP_MODEL, name,
        "MODEL.PIXEL_MEAN", mean,
        "MODEL.PIXEL_STD", std,
        "MODEL.DENSECLIP.VISUAL.DENSE_FEATURES", untrained_dense_feature(architecture),
        "MODEL.DENSECLIP.VISUAL.RES5_DILATION", cells.get("res5_dilation", 1),
        "INPUT.MIN_SIZE_TEST", 3 * min(sides) // 2,
        "TEST.SLIDING_WINDOW.SIZE", sides,
        "TEST.SLIDING_WINDOW.STRIDE", tuple(side // 2 for side in sides),
        *(["MODEL.DENSECLIP.SCORE_MAP.TAU", tau] if tau else []),
        *opts,
    ]  # fmt: skip
