"""From a config and its weights to a verified file."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import nn

from ..builder import build_model_with_weights, class_names_of
from ..checkpoint.exported import about
from ..data.checks import load_datasets
from ..data.pictures import as_bgr, ordered, read_picture
from ..guidance import guidance_of
from ..shapes.scene import draw_scene, sample_background
from ..utils.atomic import atomic_write
from .agreement import Agreement, agreement
from .formats import FORMATS
from .precision import PRECISIONS
from .refusals import exportable, is_guided
from .sizes import telling_sizes
from .verification import Verdict, verify
from .whole import PAGE, WholeModel

TRACED = (1.0, 1.25)
"""Height and width of the picture that is traced, in shortest sides at test time."""
VERIFIED = ((0.75, 1.0), (1.2, 1.0), (0.8, 1.6))
"""And of those that a file is verified with, where resizing asks for no others, beside an empty one."""
EMPTY = (0.9, 0.8)
SIDE = 256
"""The shortest side where pictures are not resized."""
SHAPES_SIZE = (128, 160)
CALIBRATION = 50
"""Pictures that 8 bits are fitted to, and the most that are verified with."""


def export_model(
    cfg: CfgNode,
    file: Path,
    format: str,
    *,
    prepared: bool = False,
    score_map: bool = False,
    pasted: bool = True,
    images: Sequence[str] = (),
    precision: str = "float32",
) -> Verdict | Agreement:
    """Write a config's trained model as a file that needs neither this package nor Detectron2.

    Text is folded, so that no text encoder is in the file, and norms are fused into convolutions. The file is
    there when its runtime has given what the model gives, and else not at all. Where it holds a system up to
    its heads, the page that decodes what they give is written beside it.

    Args:
        cfg: with MODEL.WEIGHTS, of the whole model.
        format: of ``FORMATS``.
        prepared, score_map, pasted: see :class:`WholeModel`.
        images: pictures to verify with; empty: generated shapes. "int8" is fitted to them too; empty: to the
            first of ``DATASETS.TRAIN``, and verified with them.
        precision: of ``PRECISIONS``.

    Raises:
        ValueError: a model that cannot be exported; the file differs from it.
        FileNotFoundError: see :class:`DenseCLIPCheckpointer`; no ``DATASETS.TRAIN`` for "int8".
    """
    kind = exportable(cfg, format)
    _check_options(cfg, format, prepared=prepared, score_map=score_map, precision=precision)
    FORMATS[format].check_packages()
    exact = precision == "float32"
    if precision == "int8":
        images = images or _training_pictures(cfg)
    sources = _sources(images[:CALIBRATION], cfg.INPUT.FORMAT)
    whole = kind(
        _folded_model(cfg),
        shortest=0 if prepared else cfg.INPUT.MIN_SIZE_TEST,
        longest=cfg.INPUT.MAX_SIZE_TEST,
        prepared=prepared,
        score_map=score_map,
        pasted=pasted,
    )
    side = cfg.INPUT.MIN_SIZE_TEST or SIDE
    step = whole.model.backbone.size_divisibility if FORMATS[format].asks_nothing else 1
    size = partial(_size, side=side, step=step)
    said = {**_about(whole, cfg), "precision": precision}
    content = FORMATS[format].content(whole, whole.prepare(_resized(sources[0], size(TRACED))), said)
    content = PRECISIONS[precision](content, (whole.prepare(x).numpy() for x in sources))
    sizes = telling_sizes(whole.shortest, whole.longest) if whole.shortest else []
    sizes += map(size, VERIFIED[len(sizes) :])
    number = len(sizes) if exact else max(len(sizes), len(sources))
    pictures = [_resized(*x) for x in islice(zip(cycle(sources), cycle(sizes)), number)]
    pictures.append(_resized(sample_background(np.random.default_rng(0), *SHAPES_SIZE), size(EMPTY)))
    with atomic_write(file, "wb") as written:
        written.write(content)
        written.flush()
        with FORMATS[format].runtime(Path(written.name)) as run:
            verdict = verify(run, whole, pictures) if exact else agreement(run, whole, pictures, precision)
        if PAGE in said:
            with atomic_write(file.with_name(PAGE), "w", encoding="utf-8") as page:
                page.write(said[PAGE])
    return verdict


def files_of(cfg: CfgNode, format: str) -> list[str]:
    """The names of the files that an export writes.

    Raises:
        ValueError: the model cannot be exported.
    """
    return [FORMATS[format].file, *([PAGE] if exportable(cfg, format).page else [])]


def _check_options(cfg: CfgNode, format: str, *, prepared: bool, score_map: bool, precision: str) -> None:
    """
    Raises:
        ValueError: what is asked for is not in the model, or not in the format.
    """
    if score_map and not is_guided(cfg):
        raise ValueError("--score-map: this model is without language, and has no score map.")
    if FORMATS[format].asks_nothing and not prepared:
        raise ValueError(
            f"--format {format} needs --prepared: what resizing does depends on values, which it does not "
            "follow. Give it, or take another --format."
        )
    if precision != "float32" and not FORMATS[format].any_precision:
        able = " or ".join(name for name, x in FORMATS.items() if x.any_precision)
        raise ValueError(f"--precision {precision} is of ONNX files: take --format {able}.")


def _training_pictures(cfg: CfgNode) -> list[str]:
    """
    Raises:
        ValueError, FileNotFoundError: there are none.
    """
    try:
        records = load_datasets(cfg.DATASETS.TRAIN, filter_empty=False, check_images=False)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--precision int8 is fitted to DATASETS.TRAIN, or to --images: {error}") from error
    return [record["file_name"] for record in records[:CALIBRATION]]


def _folded_model(cfg: CfgNode) -> nn.Module:
    """The trained model, without text encoder and without gradients; on the processor."""
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.COMPILE", False])
    model = build_model_with_weights(cfg).eval().requires_grad_(False)
    if guided := guidance_of(model):
        guided.language.fold_()
    return model


def _about(whole: WholeModel, cfg: CfgNode) -> dict[str, str]:
    """What the file says of itself: as exported weights do, and how its input is to be."""
    cfg, guided = cfg.clone(), guidance_of(whole.model)
    cfg.MODEL.DENSECLIP.PROMPT.FOLDED = guided is not None
    source = PathManager.get_local_path(cfg.MODEL.WEIGHTS.partition("?")[0])
    return {
        **about(whole.model, cfg, class_names_of(whole.model, cfg), source=source),
        "pixel_format": cfg.INPUT.FORMAT,
        "pixel_mean": json.dumps(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": json.dumps(cfg.MODEL.PIXEL_STD),
        "shortest_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "longest_side": str(cfg.INPUT.MAX_SIZE_TEST),
        "prepared": json.dumps(whole.prepared),
        "score_map_stride": str(guided.score_map_stride if guided else 0),
        **whole.about(),
    }


def _sources(images: Sequence[str], pixel_format: str) -> list[np.ndarray]:
    """Pictures with objects, (H, W, 3) uint8, channels in the order of ``pixel_format``."""
    pictures = [read_picture(image) for image in images] or [_shapes(seed) for seed in range(len(VERIFIED))]
    return [ordered(picture, pixel_format) for picture in pictures]


def _shapes(seed: int) -> np.ndarray:
    """A generated picture of the "shapes", BGR."""
    rng = np.random.default_rng(seed)
    instances: list = []
    while not instances:
        instances, image = draw_scene(rng, *SHAPES_SIZE)
    return as_bgr(image)


def _size(sides: tuple[float, float], *, side: int, step: int) -> tuple[int, int]:
    """Height and width that are ``sides`` times ``side``, to a multiple of ``step``."""
    height, width = (step * round(side * x / step) for x in sides)
    return height, width


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture of this height and width."""
    return np.array(Image.fromarray(np.ascontiguousarray(picture)).resize(size[::-1]))
