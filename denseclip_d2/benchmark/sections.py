"""What ``tools/benchmark.py`` measures. Each section yields tables to print."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

from ..builder import resolve_sync_bn
from ..engine import Trainer
from ..engine.train_loop import AMP_PRECISIONS
from ..visual import build_visual_encoder
from .detectors import Candidate, candidate_configs
from .exported_files import exported
from .kernels import KERNELS
from .measure import Measurement, compare
from .names import AGNOSTIC, NAMES, TEXT, names
from .runtimes import runtime_changes
from .settings import Settings, threads, with_values

Function = tuple[Callable[[], Sequence[Tensor]], Sequence[Tensor]]
"""A function without arguments, and the tensors whose gradients its backward pass computes."""


def visual(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare the visual encoder without windows with the config's windowed attention."""
    amp, held = settings.cfg.SOLVER.AMP, 0
    encoders: dict[str, nn.Module] = {}
    for window in dict.fromkeys((0, settings.cfg.MODEL.DENSECLIP.VISUAL.WINDOW_SIZE)):
        cfg = with_values(resolve_sync_bn(settings.cfg), "MODEL.DENSECLIP.VISUAL.WINDOW_SIZE", window)
        encoder = build_visual_encoder(cfg).to(settings.device)
        encoders[f"windows of {window} x {window}" if window else "without windows"] = encoder
        held = sum(parameter.nbytes for parameter in encoder.parameters())

    def encode(encoder: nn.Module, images: Tensor) -> Sequence[Tensor]:
        with torch.autocast(settings.device.type, AMP_PRECISIONS[amp.PRECISION], amp.ENABLED):
            return [*encoder(images).values()]

    for size in settings.sizes:
        images = torch.randn(settings.batch, 3, *size, device=settings.device)
        functions = {
            name: (partial(encode, encoder, images), [p for p in encoder.parameters() if p.requires_grad])
            for name, encoder in encoders.items()
        }
        case = f"{size[0]} x {size[1]}"
        yield from _both_passes("visual encoder", case, functions, settings, held=held, images=settings.batch)


def kernels(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare kernels with their definitions."""
    for number, size in dict.fromkeys((case.classes, case.size) for case in settings.sweep()):
        for name, kernel in KERNELS.items():
            inputs = kernel.make_inputs(settings.batch, number, size, settings.device)
            learned = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
            functions = {
                "definition": (partial(kernel.definition, *inputs), learned),
                "kernel": (partial(kernel.function, *inputs), learned),
            }
            yield from _both_passes(name, f"{size[0]} x {size[1]}, K = {number}", functions, settings)


def _both_passes(
    section: str, case: str, functions: Mapping[str, Function], settings: Settings, *, held: int = 0,
    images: int = 0,
) -> Iterator[list[Measurement]]:  # fmt: skip
    """Compare functions in the forward pass alone, and in the forward and the backward pass."""

    def forward(function: Callable, learned: Sequence[Tensor]) -> None:
        with torch.no_grad():
            function()

    def both(function: Callable, learned: Sequence[Tensor]) -> None:
        outputs = [x for x in function() if x.requires_grad]
        torch.autograd.grad(outputs, learned, [torch.ones_like(x) for x in outputs], allow_unused=True)

    for passes, step in (("forward", forward), ("forward and backward", both)):
        yield compare(
            f"{section}, {passes}", case, {name: partial(step, *own) for name, own in functions.items()},
            settings.repeats, settings.device, held=dict.fromkeys(functions, lambda: held), images=images,
        )  # fmt: skip


Configs = dict[str, CfgNode]


def inference(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare detectors in inference, from images to boxes and masks."""
    return _detectors("inference", settings, partial(_chosen, settings))


def training(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare detectors in a training step, optimizer included."""
    return _detectors("training", settings, partial(_chosen, settings), training=True)


def step_names(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare training steps of plain CLIP and of DenseCLIP by text, which reads some or all of the names."""
    return _detectors("names of a step", settings, partial(_reading, settings), training=True)


def image_names(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare inference of DenseCLIP by text, whose heads read all of the names or some of each image."""
    key = "MODEL.DENSECLIP.PROMPT.NAMES_PER_IMAGE"
    changes = {"all names": (*TEXT, key, 0), f"{NAMES} names": (*TEXT, key, NAMES)}
    return _detectors("names of an image", settings, partial(_variants, changes))


def options(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare DenseCLIP's inference as trained, by default and in bfloat16."""
    changes = {
        "as trained": ("TEST.OPTIMIZE_FOR_INFERENCE", False),
        "by default": ("TEST.OPTIMIZE_FOR_INFERENCE", True),
        "and in bfloat16": ("TEST.OPTIMIZE_FOR_INFERENCE", True, "TEST.PRECISION", "bfloat16"),
    }
    return _detectors("options", settings, partial(_variants, changes))


def runtimes(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare DenseCLIP's inference by PyTorch with that of its exported file in ``TEST.RUNTIME``."""
    return _detectors("runtimes", settings, partial(_variants, runtime_changes()))


def memory(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare DenseCLIP's training step by definitions with steps that take less and less memory."""
    recomputed = ("MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING", True)
    bfloat16 = (*recomputed, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bfloat16")
    changes: dict[str, Sequence[object]] = {
        "definitions": ("MODEL.DENSECLIP.FUSED_OPS", False),
        "kernels": ("MODEL.DENSECLIP.FUSED_OPS", True),
        "and checkpointing": recomputed,
        "and in bfloat16": bfloat16,
    }
    if find_spec("bitsandbytes"):
        changes["and AdamW in 8 bits"] = (*bfloat16, "SOLVER.OPTIMIZER", "ADAMW8BIT")
    return _detectors("memory", settings, partial(_variants, changes), training=True)


def compiled(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare DenseCLIP's inference and training step with and without ``MODEL.COMPILE``."""
    changes = {"eager": ("MODEL.COMPILE", False), "compiled": ("MODEL.COMPILE", True)}
    for direction in ("inference", "training"):
        section, training = f"compiled, {direction}", direction == "training"
        yield from _detectors(section, settings, partial(_variants, changes), training=training)


def _chosen(settings: Settings, configs: Configs) -> Configs:
    return {name: cfg for name, cfg in configs.items() if name.split()[0] in settings.candidates}


def _reading(settings: Settings, configs: Configs) -> Configs:
    text = with_values(configs["DenseCLIP"], *TEXT)
    some = with_values(text, "MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP", NAMES)
    chosen = {"CLIP": with_values(configs["CLIP"], *AGNOSTIC), f"{NAMES} names": some}
    return {**chosen, "all names": text} if "DenseCLIP" in settings.candidates else chosen


def _variants(changes: Mapping[str, Sequence[object]], configs: Configs) -> Configs:
    return {name: with_values(configs["DenseCLIP"], *pairs) for name, pairs in changes.items()}


def _detectors(
    section: str, settings: Settings, choose: Callable[[Configs], Configs], *, training: bool = False
) -> Iterator[list[Measurement]]:
    """Compare detectors; ``choose`` makes their configs from those of :func:`candidate_configs`."""
    for case in settings.sweep():
        configs = choose(candidate_configs(settings.cfg, case.classes))
        with threads(case.threads):
            candidates = {
                name: Candidate(cfg, case.batch, case.size, case.classes, training=training)
                for name, cfg in configs.items()
            }
            rows = compare(
                section,
                settings.describe(case),
                {name: candidate.step for name, candidate in candidates.items()},
                settings.repeats,
                settings.device,
                held={name: candidate.held_bytes for name, candidate in candidates.items()},
                images=case.batch,
            )
        del candidates
        gc.collect()
        yield rows


def loader(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare the training loader with Detectron2's, on ``DATASETS.TRAIN``: its start, and a batch."""
    cfg = with_values(settings.cfg, "DATALOADER.NUM_WORKERS", 0)
    unchecked = with_values(cfg, "DATASETS.CHECK_IMAGES", False)
    builds: dict[str, Callable] = {
        "Detectron2": partial(build_detection_train_loader, cfg),
        "this project": partial(Trainer.build_train_loader, cfg),
        "DATASETS.CHECK_IMAGES False": partial(Trainer.build_train_loader, unchecked),
    }
    case, cpu = ", ".join(cfg.DATASETS.TRAIN), torch.device("cpu")
    yield compare("loader, start", case, builds, settings.repeats, cpu)
    steps = {}
    for name in ("Detectron2", "this project"):
        seed_all_rng(0)  # the same images, in the same order
        steps[name] = partial(next, iter(builds[name]()))
    batch = cfg.SOLVER.IMS_PER_BATCH
    yield compare("loader, a batch in one process", case, steps, settings.repeats, cpu, images=batch)


SECTIONS = {
    "visual": visual,
    "kernels": kernels,
    "inference": inference,
    "options": options,
    "runtimes": runtimes,
    "training": training,
    "names": names,
    "step-names": step_names,
    "image-names": image_names,
    "memory": memory,
    "compiled": compiled,
    "loader": loader,
    "exported": exported,
}
"""Sections by name. Each takes :class:`Settings`."""
