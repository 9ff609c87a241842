"""Formats that are made of a ``torch.export`` program."""

import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .folding import folded
from .names import NamesEncoder
from .traceable import TraceableModel

Traceable = TraceableModel | NamesEncoder

MOST = 1024  # of images and of strides along a side; torch.export needs bounds to index memory


def torch_export(whole: Traceable, example: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    program, names = _exported(whole, example)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={**about, "outputs": json.dumps(sorted(names))})
    return content.getvalue()


def aoti(whole: Traceable, example: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    """Compile a package of AOTInductor, machine code for the processor at hand."""
    program, names = _exported(whole, example)
    content, said = io.BytesIO(), {**about, "outputs": json.dumps(names)}
    with quiet():
        torch._inductor.aoti_compile_and_package(
            program, package_path=content, inductor_configs={"aot_inductor.metadata": said}
        )
    return content.getvalue()


def executorch(whole: Traceable, example: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    """Lower a program to XNNPACK. Each entry of the metadata is a method without inputs."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # an extra
    from executorch.exir import to_edge_transform_and_lower

    program, names = _exported(whole, example)
    said: dict[str, Any] = {**about, "outputs": json.dumps(names)}
    with quiet():
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods=said
        )
        return lowered.to_executorch().buffer


def litert(whole: Traceable, example: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    """Convert a program to LiteRT. The metadata is a ZIP archive at the end of the file."""
    import litert_torch  # an extra

    program, names = _exported(whole, example)
    with quiet():
        converted = litert_torch.convert(program.module(check_guards=False), example)
    content = io.BytesIO(converted.model_content())
    with ZipFile(content, "a") as archive:
        for name, text in {**about, "outputs": json.dumps(names)}.items():
            archive.writestr(name, text)
    return content.getvalue()


def _exported(whole: Traceable, example: tuple[Tensor, ...]) -> tuple[ExportedProgram, list[str]]:
    """Return a program with folded norms, and the names of its outputs in their order."""
    sizes: list[dict] = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in whole.inputs.values()]
    if isinstance(whole, TraceableModel) and not whole.size:
        stride = whole.model.backbone.size_divisibility
        images, rows, columns = (torch.export.Dim(name, max=MOST) for name in ("images", "rows", "columns"))
        sizes[0] = {0: images, 2: stride * rows, 3: stride * columns}
        # Sizes of 1, of a batch or of a level's sides, would become constants.
        side = math.lcm(stride, *(x.stride for x in whole.model.backbone.output_shape().values()))
        example = (example[0].new_zeros(2, 3, 2 * side, 3 * side), *example[1:])
    with quiet(), torch.no_grad():
        program = torch.export.export(folded(whole), example, dynamic_shapes=tuple(sizes))
    outputs = program.call_spec.out_spec
    assert outputs is not None
    return program, list(outputs.context)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of tracing: constants, which the verification would find, and deprecations."""
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    level = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tracing.setLevel(level)
