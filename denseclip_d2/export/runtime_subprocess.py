"""Script that runs an exported file in a process that imports its runtime and nothing of this project.

Its arguments are a key of ``KINDS``, the file, and further arguments of that kind. It reads pickled arrays
from stdin and writes pickled arrays by name to stdout.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[Any], dict[str, Any]]
"""Returns arrays by name for the arrays of all inputs."""


def torchscript(path: str) -> Answer:
    import torch
    import torchvision  # noqa: F401  (for its operations)

    about = {"outputs": ""}
    model = torch.jit.load(path, _extra_files=about)
    names = json.loads(about["outputs"])

    @torch.no_grad()
    def answer(*inputs: Any) -> dict[str, Any]:
        outputs = model(*map(torch.from_numpy, inputs))  # a tuple, or a single tensor
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: x.numpy() for name, x in zip(names, outputs, strict=True)}

    return answer


def torch_export(path: str) -> Answer:
    import torch
    import torchvision  # noqa: F401  (for its operations)

    with Path(path).open("rb") as file:  # load() accepts only paths that end in .pt2
        # The guards would refuse levels of one cell, for their memory layout alone.
        model = torch.export.load(file).module(check_guards=False)

    @torch.no_grad()
    def answer(*inputs: Any) -> dict[str, Any]:
        return {name: x.numpy() for name, x in model(*map(torch.from_numpy, inputs)).items()}

    return answer


def aoti(path: str) -> Answer:
    import torch

    with Path(path).open("rb") as file:  # as for torch.export.load()
        model = torch._inductor.aoti_load_package(file)

    def answer(*inputs: Any) -> dict[str, Any]:
        return {name: x.numpy() for name, x in model(*map(torch.from_numpy, inputs)).items()}

    return answer


def executorch(path: str) -> Answer:
    import torch
    from executorch.runtime import Runtime  # an extra

    program = Runtime.get().load_program(path)
    names = json.loads(program.load_method("outputs").execute([])[0])
    model = program.load_method("forward")

    def answer(*inputs: Any) -> dict[str, Any]:
        outputs = model.execute([*map(torch.from_numpy, inputs)])
        return {name: x.numpy() for name, x in zip(names, outputs, strict=True)}

    return answer


def litert(path: str) -> Answer:
    from ai_edge_litert.interpreter import Interpreter  # a package that litert-torch requires

    model = Interpreter(path).get_signature_runner()
    details = model.get_input_details()

    def answer(*inputs: Any) -> dict[str, Any]:
        given = zip(details.items(), inputs, strict=True)
        return model(**{name: x.astype(about["dtype"]) for (name, about), x in given})  # int64 became int32

    return answer


def openvino(path: str, precision: str = "") -> Answer:
    """Run an ONNX file in OpenVINO, in a precision or in OpenVINO's choice."""
    import numpy as np
    import openvino as runtime  # an extra

    core = runtime.Core()
    read = core.read_model(Path(path).read_bytes())
    names = json.loads(read.get_rt_info(["framework", "outputs"]).value)
    model = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": precision} if precision else {})

    def answer(*inputs: Any) -> dict[str, Any]:
        given = model(list(inputs))
        return {name: np.array(given[name]) for name in names}

    return answer


KINDS: dict[str, Callable[..., Answer]] = {
    "torchscript": torchscript,
    "torch_export": torch_export,
    "aoti": aoti,
    "executorch": executorch,
    "litert": litert,
    "openvino": openvino,
}


def main(kind: str, *arguments: str) -> None:
    answer = KINDS[kind](*arguments)
    while True:
        try:
            inputs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(*inputs), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
