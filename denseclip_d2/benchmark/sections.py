"""What ``tools/benchmark.py`` measures; each section gives rows to print."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from detectron2.config import CfgNode
from torch import nn

from ..builder import with_fitting_norms
from ..clip_models import get_clip_architecture
from ..engine.train_loop import PRECISIONS
from ..kernels import KERNELS
from ..language.prompts import tokenize_names
from ..language.text_encoder import CLIPTextEncoder
from ..visual import build_visual_encoder
from .arithmetic import arithmetic
from .data import loader, start
from .detectors import Contender, class_names, contending_configs
from .exported import exported
from .figures import figures
from .importing import imports
from .measure import Row, bandwidth, compare
from .saving import checkpoint
from .settings import Settings, with_value


def text(settings: Settings) -> Iterator[list[Row]]:
    """The text encoder: each prompt alone (as published), and packed."""
    denseclip, device = settings.cfg.MODEL.DENSECLIP, settings.device
    encoder = CLIPTextEncoder.from_architecture(get_clip_architecture(denseclip.CLIP_MODEL)).to(device)
    contexts = torch.randn(1, denseclip.PROMPT.NUM_CONTEXTS, encoder.width, device=device)
    contexts.requires_grad_()
    for number in settings.classes:
        ids = tokenize_names(class_names(number)).to(device)
        case = f"K = {number}, {ids.shape[1]} + {contexts.shape[1]} tokens"
        encoders = {"every prompt alone": encoder.encode_unpacked, "packed": encoder}

        def forward(encode: Callable, ids=ids) -> None:
            with torch.no_grad():
                encode(ids, contexts)

        def both(encode: Callable, ids=ids) -> None:
            torch.autograd.grad(encode(ids, contexts).square().sum(), contexts)

        for name, step in (("forward", forward), ("forward and backward", both)):
            steps = {contender: partial(step, encode) for contender, encode in encoders.items()}
            held = dict.fromkeys(steps, partial(_bytes_of, encoder))
            yield compare(f"text, {name}", case, steps, settings.repeats, device, held=held)


def visual(settings: Settings) -> Iterator[list[Row]]:
    """The visual encoder with attention as the config has it, against the same without windows."""
    encoders = {}
    for window in {0: None, settings.cfg.MODEL.DENSECLIP.VISUAL.WINDOW_SIZE: None}:
        cfg = with_value(with_fitting_norms(settings.cfg), "MODEL.DENSECLIP.VISUAL.WINDOW_SIZE", window)
        name = f"windows of {window} x {window}" if window else "without windows"
        encoders[name] = build_visual_encoder(cfg).to(settings.device)
    amp = settings.cfg.SOLVER.AMP
    precision = partial(torch.autocast, settings.device.type, PRECISIONS[amp.PRECISION], amp.ENABLED)
    for size in settings.sizes:
        images = torch.randn(settings.batch, 3, *size, device=settings.device)

        def forward(encoder: nn.Module, images=images) -> None:
            with torch.no_grad(), precision():
                encoder(images)

        def both(encoder: nn.Module, images=images) -> None:
            with precision():
                loss = sum(feature.float().square().mean() for feature in encoder(images).values())
            loss.backward()
            encoder.zero_grad()

        for direction, step in (("forward", forward), ("forward and backward", both)):
            yield compare(
                f"visual encoder, {direction}",
                f"{size[0]} x {size[1]}",
                {name: partial(step, encoder) for name, encoder in encoders.items()},
                settings.repeats,
                settings.device,
                held={name: partial(_bytes_of, encoder) for name, encoder in encoders.items()},
                images=settings.batch,
            )


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _detectors(
    section: str, settings: Settings, configs: Callable[[int], dict[str, CfgNode]], *, training: bool = False
) -> Iterator[list[Row]]:
    """Detectors against one another, of the configs that there are for a number of classes."""
    for case in settings.growth():
        own = configs(case.classes)
        with _threads(case.threads):
            contenders = {
                name: Contender(cfg, case.batch, case.size, case.classes, training=training)
                for name, cfg in own.items()
            }
            rows = compare(
                section,
                settings.describe(case),
                {name: contender.step for name, contender in contenders.items()},
                settings.repeats,
                settings.device,
                held={name: contender.held_bytes for name, contender in contenders.items()},
                images=case.batch,
                numbers=case.numbers(),
            )
        del contenders
        gc.collect()
        both = settings.arithmetic and {"CLIP", "DenseCLIP"} <= own.keys()
        yield [*rows, arithmetic(rows, case, own)] if both else rows


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(settings: Settings, num_classes: int) -> dict[str, CfgNode]:
    configs = contending_configs(settings.cfg, num_classes)
    return {name: cfg for name, cfg in configs.items() if name.split()[0] in settings.contenders}


def inference(settings: Settings) -> Iterator[list[Row]]:
    """Whole detectors, image to boxes and masks."""
    return _detectors("inference", settings, partial(_chosen, settings))


def training(settings: Settings) -> Iterator[list[Row]]:
    """A whole step of training, optimizer included."""
    return _detectors("training", settings, partial(_chosen, settings), training=True)


def options(settings: Settings) -> Iterator[list[Row]]:
    """DenseCLIP's inference as it is trained, as it is by default, and in bfloat16."""

    def configs(num_classes: int) -> dict[str, CfgNode]:
        cfg = contending_configs(settings.cfg, num_classes)["DenseCLIP"]
        fast = with_value(cfg, "TEST.FAST", True)
        return {
            "as trained": with_value(cfg, "TEST.FAST", False),
            "by default": fast,
            "and in bfloat16": with_value(fast, "TEST.PRECISION", "bfloat16"),
        }

    return _detectors("options", settings, configs)


def compiled(settings: Settings) -> Iterator[list[Row]]:
    """DenseCLIP's inference and step of training without ``MODEL.COMPILE`` and with."""

    def configs(num_classes: int) -> dict[str, CfgNode]:
        cfg = contending_configs(settings.cfg, num_classes)["DenseCLIP"]
        return {name: with_value(cfg, "MODEL.COMPILE", name == "compiled") for name in ("eager", "compiled")}

    for direction, training in (("inference", False), ("training", True)):
        yield from _detectors(f"compiled, {direction}", settings, configs, training=training)


def kernels(settings: Settings) -> Iterator[list[Row]]:
    """Kernels against their definitions, and the least time that the memory's bandwidth allows."""
    device, speed = settings.device, bandwidth(settings.device)
    for (number, size), kernel in product(settings.cases(), KERNELS):
        inputs = kernel.make_inputs(settings.batch, number, size, device)
        learned = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]

        def forward(function: Callable, inputs=inputs) -> None:
            with torch.no_grad():
                function(*inputs)

        def both(function: Callable, inputs=inputs, learned=learned) -> None:
            outputs = [x for x in function(*inputs) if x.requires_grad]
            torch.autograd.grad(outputs, learned, [torch.ones_like(x) for x in outputs])

        functions = {"definition": kernel.definition, "kernel": kernel.function}
        for direction, step, least in (
            ("forward", forward, kernel.forward_bytes(*inputs)),
            ("forward and backward", both, kernel.backward_bytes(*inputs)),
        ):
            yield compare(
                f"{kernel.name}, {direction}",
                f"{size[0]} x {size[1]}, K = {number}",
                {name: partial(step, function) for name, function in functions.items()},
                settings.repeats,
                device,
                held=dict.fromkeys(functions, lambda: 0),
                by_bandwidth=least / speed,
                launched=False,
            )


SECTIONS = {
    "text": text,
    "visual": visual,
    "kernels": kernels,
    "inference": inference,
    "options": options,
    "training": training,
    "compiled": compiled,
    "loader": loader,
    "start": start,
    "imports": imports,
    "checkpoint": checkpoint,
    "figures": figures,
    "exported": exported,
}
"""By name; each is given :class:`Settings`."""
GROWING = ("inference", "options", "training", "compiled")
"""Of them, those that are measured along every axis of :class:`.settings.Case`."""
