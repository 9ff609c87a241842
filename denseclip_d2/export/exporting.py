"""Export of a config's model to a verified file."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import nn

from ..builder import build_model_with_weights, class_names_of
from ..data.checks import load_datasets
from ..data.pictures import as_bgr, ordered, read_picture
from ..guidance import guidance_of
from ..shapes.scene import draw_scene, sample_background
from ..utils.atomic import atomic_write
from .agreement import Agreement, agreement
from .formats import FORMATS
from .precision import PRECISIONS
from .refusals import exportable, is_guided
from .safetensors import about
from .sizes import telling_sizes
from .verification import Verdict, verify
from .whole import PAGE, WholeModel

TRACED = (1.0, 1.25)
"""Height and width of the traced picture, relative to the shortest side at test time."""
VERIFIED = ((0.75, 1.0), (1.2, 1.0), (0.8, 1.6))
"""Those of the verified pictures, if resizing needs no others."""
EMPTY = (0.9, 0.8)
"""Those of a verified picture without objects."""
SIDE = 256
"""The shortest side if pictures are not resized."""
SHAPES_SIZE = (128, 160)
CALIBRATION = 50
"""The greatest number of pictures that int8 is calibrated on and that files are verified with."""


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

    The file has precomputed text embeddings and fused norms. It is kept only if the outputs in its runtime
    agree with the model's. If it ends at the heads, the page that decodes their outputs is written beside it.

    Args:
        cfg: with MODEL.WEIGHTS of the whole model.
        format: of ``FORMATS``.
        prepared, score_map, pasted: see :class:`WholeModel`.
        images: pictures to verify with; empty: generated shapes. "int8" is also calibrated on them; empty: on
            the first of ``DATASETS.TRAIN``, and verified with them.
        precision: of ``PRECISIONS``.

    Raises:
        ValueError, FileNotFoundError: the model cannot be exported; the file differs from it; no weights.
    """
    kind = exportable(cfg, format)
    _check_options(cfg, format, prepared=prepared, score_map=score_map, precision=precision)
    exact = precision == "float32"
    sources = _sources(cfg, images, precision)
    whole = kind(
        _folded_model(cfg), shortest=0 if prepared else cfg.INPUT.MIN_SIZE_TEST,
        longest=cfg.INPUT.MAX_SIZE_TEST, prepared=prepared, score_map=score_map, pasted=pasted,
    )  # fmt: skip
    step = whole.model.backbone.size_divisibility if FORMATS[format].asks_nothing else 1
    size = partial(_size, side=cfg.INPUT.MIN_SIZE_TEST or SIDE, step=step)
    said = {**_about(whole, cfg), "precision": precision}
    content = FORMATS[format].content(whole, whole.prepare(_resized(sources[0], size(TRACED))), said)
    content = PRECISIONS[precision](content, (whole.prepare(x).numpy() for x in sources))
    pictures = _pictures_to_verify(whole, sources, size, every_source=not exact)
    with atomic_write(file, "wb") as written:
        written.write(content)
        written.flush()
        with FORMATS[format].runtime(Path(written.name)) as run:
            result = verify(run, whole, pictures) if exact else agreement(run, whole, pictures, precision)
        if PAGE in said:
            with atomic_write(file.with_name(PAGE), "w", encoding="utf-8") as page:
                page.write(said[PAGE])
    return result


def files_of(cfg: CfgNode, format: str) -> list[str]:
    """Return the names of the files that an export writes.

    Raises:
        ValueError: the model cannot be exported.
    """
    return [FORMATS[format].file, *([PAGE] if exportable(cfg, format).page else [])]


def _check_options(cfg: CfgNode, format: str, *, prepared: bool, score_map: bool, precision: str) -> None:
    """
    Raises:
        ValueError: the model or the format lacks what is requested; a package is not installed.
    """
    if score_map and not is_guided(cfg):
        raise ValueError("--score-map: this model has no score map, for it has no language.")
    if FORMATS[format].asks_nothing and not prepared:
        raise ValueError(
            f"--format {format} needs --prepared, for it cannot export resizing. Give --prepared, or choose "
            "another --format."
        )
    if precision != "float32" and not FORMATS[format].any_precision:
        able = " or ".join(name for name, x in FORMATS.items() if x.any_precision)
        raise ValueError(f"--precision {precision} needs an ONNX file. Choose --format {able}.")
    FORMATS[format].check_packages()


def _training_pictures(cfg: CfgNode) -> list[str]:
    """
    Raises:
        ValueError, FileNotFoundError: the dataset cannot be read.
    """
    try:
        records = load_datasets(cfg.DATASETS.TRAIN, filter_empty=False, check_images=False)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--precision int8 needs DATASETS.TRAIN or --images: {error}") from error
    return [record["file_name"] for record in records[:CALIBRATION]]


def _folded_model(cfg: CfgNode) -> nn.Module:
    """Return the trained model on the CPU, without text encoder and gradients."""
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.COMPILE", False])
    model = build_model_with_weights(cfg).eval().requires_grad_(False)
    if guided := guidance_of(model):
        guided.language.precompute_()
    return model


def _about(whole: WholeModel, cfg: CfgNode) -> dict[str, str]:
    """Return the metadata of the file: that of exported weights, and the format of the input."""
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


def _sources(cfg: CfgNode, images: Sequence[str], precision: str) -> list[np.ndarray]:
    """Return pictures with objects, (H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``."""
    if precision == "int8":
        images = images or _training_pictures(cfg)
    pictures = [read_picture(image) for image in images[:CALIBRATION]]
    pictures = pictures or [_shapes(seed) for seed in range(len(VERIFIED))]
    return [ordered(picture, cfg.INPUT.FORMAT) for picture in pictures]


def _shapes(seed: int) -> np.ndarray:
    """Return a generated picture, BGR."""
    rng = np.random.default_rng(seed)
    instances: list = []
    while not instances:
        instances, image = draw_scene(rng, *SHAPES_SIZE)
    return as_bgr(image)


def _pictures_to_verify(
    whole: WholeModel, sources: Sequence[np.ndarray], size: Callable, *, every_source: bool
) -> list[np.ndarray]:
    sizes = telling_sizes(whole.shortest, whole.longest) if whole.shortest else []
    sizes += map(size, VERIFIED[len(sizes) :])
    number = max(len(sizes), len(sources)) if every_source else len(sizes)
    pictures = [_resized(*x) for x in islice(zip(cycle(sources), cycle(sizes)), number)]
    return [*pictures, _resized(sample_background(np.random.default_rng(0), *SHAPES_SIZE), size(EMPTY))]


def _size(sides: tuple[float, float], *, side: int, step: int) -> tuple[int, int]:
    """Return ``sides`` times ``side``, rounded to multiples of ``step``."""
    height, width = (step * round(side * x / step) for x in sides)
    return height, width


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(np.ascontiguousarray(picture)).resize(size[::-1]))
