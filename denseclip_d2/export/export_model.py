"""Export of a config's model to a verified file."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor, nn

from ..builder import build_model_with_weights, class_names_of, fuse_layers
from ..data.checks import load_datasets
from ..data.image_io import convert_bgr, read_image, to_bgr
from ..guidance import guidance_of
from ..shapes.scene import draw_scene, sample_background
from ..utils.atomic import atomic_write
from .agreement import Agreement, agreement
from .decode_dense import decode
from .formats import FORMATS
from .names import TOKENIZER, Names, ReadNames, names_file, takes_text
from .precision import EXPORT_PRECISIONS, store_float16
from .runtimes import Outputs, Run
from .safetensors import about
from .sizes import telling_sizes
from .support import check_exportable, is_guided
from .tokenizer_json import tokenizer_json
from .traceable import DECODER_SOURCE, TraceableModel
from .verification import VerificationResult, verify

TRACED = (1.0, 1.25)
"""Height and width of the traced image, relative to the shortest side at test time."""
VERIFIED = ((0.75, 1.0), (1.2, 1.0), (0.8, 1.6))
"""Those of the verified images, if resizing needs no others."""
EMPTY = (0.9, 0.8)
"""Those of a verified image without objects."""
SIDE = 256
"""The shortest side if images are not resized."""
SHAPES_SIZE = (128, 160)
CALIBRATION = 50
"""The greatest number of images that int8 is calibrated on and that files are verified with."""


def export_model(
    cfg: CfgNode, file: Path, format: str,
    *,
    preprocessed: bool = False,
    score_map: bool = False,
    paste_masks: bool = True,
    size: tuple[int, int] | None = None,
    heads: bool = False,
    images: Sequence[str] = (),
    precision: str = "float32",
    verified: bool = True,
) -> VerificationResult | Agreement | None:  # fmt: skip
    """Write a config's trained model as a file that needs neither this package nor Detectron2.

    The file has fused norms, and precomputed text embeddings or, if :func:`takes_text`, an input of them. It
    is kept only if the outputs in its runtime agree with the model's. The names' encoder and their tokenizer
    are written beside it, and for a file that ends at the heads the page that decodes their outputs.

    Args:
        cfg: with MODEL.WEIGHTS of the whole model.
        format, precision: of ``FORMATS`` and of ``EXPORT_PRECISIONS``.
        preprocessed, score_map, paste_masks, size, heads: see :class:`TraceableModel`, :class:`DenseHeads`.
        images: images to verify with; empty: generated shapes. "int8" is also calibrated on them; empty: on
            the first of ``DATASETS.TRAIN``, and verified with them.
        verified: False keeps a file that is not compared, and returns None, for random weights.

    Raises:
        ValueError, FileNotFoundError: the model cannot be exported; the file differs from it; no weights.
    """
    kind = check_exportable(cfg, format, heads=heads)
    _check_options(cfg, format, preprocessed, precision, score_map=score_map, size=size, heads=heads)
    sources = _sources(cfg, images, precision)
    model, names = _trained_model(cfg, fixed_sizes=FORMATS[format].sizes == "given")
    whole = kind(
        model, shortest=0 if preprocessed else cfg.INPUT.MIN_SIZE_TEST, longest=cfg.INPUT.MAX_SIZE_TEST,
        preprocessed=preprocessed, score_map=score_map, paste_masks=paste_masks, size=size,
    )  # fmt: skip
    sized = partial(_size, side=cfg.INPUT.MIN_SIZE_TEST or SIDE, step=_step(whole, format), fixed=size)
    said = {**_about(whole, cfg), **(names.about() if names else {}), "precision": precision}
    traced, text = _resized(sources[0], sized(TRACED)), [names.text()] if names else []
    content = _content(whole, [traced, *sources], text, format, said)
    compared = _images_to_verify(whole, sources, sized, every_source=precision != "float32")
    compare = verify if precision == "float32" else partial(agreement, precision=precision)
    with ExitStack() as stack:
        run = partial(_decoded, stack.enter_context(_written(file, content, format)), said)
        read = stack.enter_context(_written_names(file, names, format, said)) if names else None
        result = compare(run, whole, compared, names=read) if verified else None
    if DECODER_SOURCE in said:
        _write_text(file.with_name(DECODER_SOURCE), said[DECODER_SOURCE])
    return result


def _decoded(run: Run, said: dict[str, str], *inputs: np.ndarray) -> Outputs:
    """Return the outputs of a file, of heads decoded by the page beside it."""
    if "logits" not in (found := run(*inputs)):
        return found
    return decode(found, said, inputs[0].shape[2:])


def files_of(cfg: CfgNode, format: str, *, heads: bool = False) -> list[str]:
    """Return the names of the files that an export writes.

    Raises:
        ValueError: the model cannot be exported.
    """
    kind, file = check_exportable(cfg, format, heads=heads), Path(FORMATS[format].file)
    names = [names_file(file).name, TOKENIZER] if takes_text(cfg) else []
    return [file.name, *names, *([DECODER_SOURCE] if kind.page else [])]


def _content(
    whole: TraceableModel, images: list[np.ndarray], text: list[Tensor], format: str, said: dict[str, str]
) -> bytes:
    """Return the content of the model's file: traced on the first image, int8 calibrated on the others."""
    inputs = ((whole.preprocess(image), *text) for image in images)
    content = FORMATS[format].content(whole, next(inputs), said)
    return EXPORT_PRECISIONS[said["precision"]](content, ([x.numpy() for x in own] for own in inputs))


@contextmanager
def _written(file: Path, content: bytes, format: str) -> Iterator[Run]:
    """Run a file in its runtime, and keep the file if no error is raised."""
    with atomic_write(file, "wb") as written:
        written.write(content)
        written.flush()
        with FORMATS[format].runtime(Path(written.name)) as run:
            yield run


@contextmanager
def _written_names(file: Path, names: Names, format: str, said: dict[str, str]) -> Iterator[ReadNames]:
    """Write the names' encoder and the tokenizer beside a model's file, as of :func:`_written`."""
    encoder, example = names.encoder()
    content = FORMATS[format].content(encoder, (example,), said)
    if said["precision"] != "float32":  # also for int8, which is calibrated on images
        content = store_float16(content)
    with _written(names_file(file), content, format) as encode:
        yield names.verified(encode)
    _write_text(file.with_name(TOKENIZER), tokenizer_json())


def _write_text(file: Path, text: str) -> None:
    with atomic_write(file, "w", encoding="utf-8") as written:
        written.write(text)


def _check_options(cfg: CfgNode, format: str, preprocessed: bool, precision: str, **options: Any) -> None:
    """
    Raises:
        ValueError: the model or the format lacks what is requested; a package is not installed.
    """
    if options["score_map"] and not is_guided(cfg):
        raise ValueError("--score-map: this model has no score map, for it has no language.")
    if FORMATS[format].static_graph and not preprocessed:
        raise ValueError(
            f"--format {format} needs --preprocessed, for it cannot export resizing. Give --preprocessed, or "
            "choose another --format."
        )
    if options["heads"] and not preprocessed:
        raise ValueError("--heads needs --preprocessed: boxes are decoded in pixels of the resized image.")
    onnx_only = [f"--precision {precision}"] if precision != "float32" else []
    onnx_only += ["--heads"] if options["heads"] else []
    if onnx_only and not FORMATS[format].onnx:
        raise ValueError(f"{onnx_only[0]} needs an ONNX file. Choose {_formats(onnx=True)}.")
    if options["size"] and FORMATS[format].sizes == "any":
        raise ValueError(
            f"--format {format} takes images of any size. Leave out --size, or choose "
            f"{_formats(sizes='either')}."
        )
    if FORMATS[format].sizes == "given" and not options["size"]:
        raise ValueError(f"--format {format} takes images of one size. Give it by --size H W.")
    FORMATS[format].check_packages()


def _formats(**attributes: Any) -> str:
    """Return the formats with attributes as values of --format."""
    able = (name for name, x in FORMATS.items() if all(getattr(x, k) == own for k, own in attributes.items()))
    return f"--format {' or '.join(able)}"


def _training_images(cfg: CfgNode) -> list[str]:
    """
    Raises:
        ValueError, FileNotFoundError: the dataset cannot be read.
    """
    try:
        records = load_datasets(cfg.DATASETS.TRAIN, filter_empty=False, check_images=False)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--precision int8 needs DATASETS.TRAIN or --images: {error}") from error
    return [record["file_name"] for record in records[:CALIBRATION]]


def _trained_model(cfg: CfgNode, *, fixed_sizes: bool) -> tuple[nn.Module, Names | None]:
    """Return the trained model on the CPU, fused, without text encoder, and its names if it takes any."""
    cfg = cfg.clone()
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.COMPILE", False, "MODEL.DENSECLIP.PROMPT.NAMES_PER_IMAGE", 0]
    )
    model = build_model_with_weights(cfg).eval()
    fuse_layers(model)
    model.requires_grad_(False)
    if takes_text(cfg):
        return model, Names(model, cfg, fixed_sizes=fixed_sizes)
    if guided := guidance_of(model):
        guided.language.precompute_()
    return model, None


def _about(whole: TraceableModel, cfg: CfgNode) -> dict[str, str]:
    """Return the metadata of the file: that of exported weights, and the format of the input."""
    cfg, guided = cfg.clone(), guidance_of(whole.model)
    cfg.defrost()
    cfg.MODEL.DENSECLIP.PROMPT.PRECOMPUTED = guided is not None
    source = PathManager.get_local_path(cfg.MODEL.WEIGHTS.partition("?")[0])
    return {
        **about(whole.model, cfg, class_names_of(whole.model, cfg), source=source),
        "pixel_format": cfg.INPUT.FORMAT,
        "pixel_mean": json.dumps(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": json.dumps(cfg.MODEL.PIXEL_STD),
        "shortest_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "longest_side": str(cfg.INPUT.MAX_SIZE_TEST),
        "preprocessed": json.dumps(whole.preprocessed),
        "score_map_stride": str(guided.score_map_stride if guided else 0),
        **whole.about(),
    }


def _sources(cfg: CfgNode, images: Sequence[str], precision: str) -> list[np.ndarray]:
    """Return images with objects, (H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``."""
    if precision == "int8":
        images = images or _training_images(cfg)
    read = [read_image(path) for path in images[:CALIBRATION]]
    read = read or [_shapes(seed) for seed in range(len(VERIFIED))]
    return [convert_bgr(image, cfg.INPUT.FORMAT) for image in read]


def _shapes(seed: int) -> np.ndarray:
    """Return a generated image, BGR."""
    rng = np.random.default_rng(seed)
    instances: list = []
    while not instances:
        instances, image = draw_scene(rng, *SHAPES_SIZE)
    return to_bgr(image)


def _images_to_verify(
    whole: TraceableModel, sources: Sequence[np.ndarray], size: Callable, *, every_source: bool
) -> list[np.ndarray]:
    sizes = telling_sizes(whole.shortest, whole.longest) if whole.shortest and not whole.size else []
    sizes += map(size, VERIFIED[len(sizes) :])
    number = max(len(sizes), len(sources)) if every_source else len(sizes)
    images = [_resized(*x) for x in islice(zip(cycle(sources), cycle(sizes)), number)]
    return [*images, _resized(sample_background(np.random.default_rng(0), *SHAPES_SIZE), size(EMPTY))]


def _size(
    sides: tuple[float, float], *, side: int, step: int, fixed: tuple[int, int] | None
) -> tuple[int, int]:
    """Return ``fixed``, or ``sides`` times ``side``, rounded to multiples of ``step``."""
    if fixed:
        return fixed
    height, width = (step * round(side * x / step) for x in sides)
    return height, width


def _step(whole: TraceableModel, format: str) -> int:
    """Return what the sides of images must be multiples of."""
    return whole.model.backbone.size_divisibility if FORMATS[format].static_graph else 1


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1]))
