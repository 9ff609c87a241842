"""Run the zoo's models, exported to ONNX, in several runtimes, and print what works.

python examples/runtimes.py FOLDER    # for the files and an environment of the runtimes

Each pair of a file and a runtime has a process of its own. Files take images of one size: whole, and of
RetinaNet also up to the heads. The table has the time of each, beside eager's. tinygrad needs clang, and
onnx2tf, which converts for LiteRT, a python3.12.
"""

import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
PACKAGES = {
    "onnxruntime": "1.32.0",
    "openvino": "2026.4.1",
    "opencv-python-headless": "5.0.0.93",
    "tract": "0.23.9",
    "MNN": "3.6.1",
    "onnx": "1.23.2",
    "onnx2tf": "2.6.9",
    "tinygrad": "0.14.0",
    "apache-tvm": "0.27.0.post1",
    "iree-base-compiler": "3.13.0",
}
PYTHONS = {"onnx2tf": "python3.12"}  # of runtimes that have an environment of their own
NO_SUPPRESSION = ("onnx2tf", "tinygrad", "apache-tvm", "iree-base-compiler")  # these get no whole detectors
ROWS = (("retinanet", "whole"), ("retinanet", "heads"), ("mask_rcnn", "whole"), ("semantic_fpn", "whole"))
FORMS: dict[str, list[str]] = {"whole": [], "heads": ["--heads", "--preprocessed"]}
PROGRAM = "program"  # of torch.export, by programs.py
SIZE = (128, 160)
PIXELS, SCORES, LABELS = 0.05, 1e-3, 0.999
SECONDS = 900  # tinygrad compiles for minutes


def onnxruntime(file: str, names: list[str]) -> Run:
    import onnxruntime as runtime

    session = runtime.InferenceSession(file)
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def openvino(file: str, names: list[str]) -> Run:
    import openvino as runtime

    model = runtime.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = model(images)
        return {name: np.array(found[name]) for name in names}

    return run


def opencv(file: str, names: list[str]) -> Run:
    import cv2

    net = cv2.dnn.readNetFromONNX(file)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        net.setInput(images, "images")
        return dict(zip(names, net.forward(names), strict=True))

    return run


def tract(file: str, names: list[str]) -> Run:
    import tract as runtime

    read = runtime.onnx().load(file)
    model = read.into_model().into_runnable()
    integer = runtime.DatumType.I64

    def array(name: str, tensor: "runtime.Tensor") -> np.ndarray:
        # Integers that were sizes once have a type that numpy lacks.
        whole = name in ("classes", "labels", "levels")
        return (tensor.convert_to(integer) if whole else tensor).to_numpy()

    return lambda images: {name: array(name, x) for name, x in zip(names, model.run([images]), strict=True)}


def mnn(file: str, names: list[str]) -> Run:
    import MNN

    options = ["-f", "ONNX", "--modelFile", file, "--MNNModel", f"{file}.mnn", "--bizCode", "denseclip"]
    convert("mnnconvert", *options)
    model = MNN.nn.load_module_from_file(f"{file}.mnn", ["images"], names)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        kind = MNN.expr.uint8 if images.dtype == np.uint8 else MNN.expr.float
        given = MNN.expr.const(images, list(images.shape), MNN.expr.NCHW, kind)
        found = (MNN.expr.convert(x, MNN.expr.NCHW) for x in model.forward([given]))
        return {name: np.array(x.read()) for name, x in zip(names, found, strict=True)}

    return run


def reference(file: str, names: list[str]) -> Run:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(file)
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def litert(file: str, names: list[str]) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    convert("onnx2tf", "-i", file, "-o", f"{file}.tf", "-n", "-kat", "images")
    model = Interpreter(f"{file}.tf/model_float32.tflite").get_signature_runner()
    return lambda images: model(images=images)


def tinygrad(file: str, names: list[str]) -> Run:
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    model = OnnxRunner(file)
    return lambda images: {name: x.numpy() for name, x in model({"images": Tensor(images)}).items()}


def tvm(file: str, names: list[str]) -> Run:
    import onnx
    import tvm as runtime
    from tvm.relax import VirtualMachine
    from tvm.relax.frontend.onnx import from_onnx

    library = runtime.compile(from_onnx(onnx.load(file), keep_params_in_input=False), "llvm")
    model = VirtualMachine(library, runtime.cpu())["main"]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = model(runtime.runtime.tensor(images))
        found = dict(zip(names, found if len(names) > 1 else [found], strict=True))
        # TVM makes a shape of a constant list of integers.
        return {name: x.numpy() if hasattr(x, "numpy") else np.array(list(x)) for name, x in found.items()}

    return run


def iree(file: str, names: list[str]) -> Run:
    from iree.runtime import load_vm_flatbuffer_file

    convert("iree-import-onnx", file, "-o", f"{file}.mlir")
    cpu = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    convert("iree-compile", f"{file}.mlir", "-o", f"{file}.vmfb", *cpu, "--iree-llvmcpu-target-cpu=host")
    model = load_vm_flatbuffer_file(f"{file}.vmfb", driver="local-task").main_graph

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = model(images) if len(names) > 1 else [model(images)]
        return {name: x.to_host() for name, x in zip(names, found, strict=True)}

    return run


def convert(command: str, *arguments: str) -> None:
    """Run a command of this environment."""
    full = [Path(sys.executable).with_name(command), *arguments]
    done = subprocess.run(full, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise ValueError(f"{command}: {first_error(done.stderr)}")


def first_error(said: str) -> str:
    return next((x[:160] for x in said.splitlines() if "rror: " in x), "it says nothing")


FUNCTIONS = (onnxruntime, openvino, opencv, tract, mnn, reference, litert, tinygrad, tvm, iree)
RUNTIMES = dict(zip(PACKAGES, FUNCTIONS, strict=True))


def timed(run: Run, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Return what ``run`` returns, and the least of ten times in milliseconds, or of fewer of 20 seconds."""
    found, times = run(images), []
    while len(times) < 10 and sum(times) < 20_000:
        start = time.perf_counter()
        run(images)
        times.append(1000 * (time.perf_counter() - start))
    return found, min(times)


def answer(package: str, file: str, images: str, names: str) -> None:
    """Write what a runtime returns, and its time, beside the images."""
    result = timed(RUNTIMES[package](file, names.split(",")), np.load(images))
    Path(f"{images}.{package}").write_bytes(pickle.dumps(result))


def exported(
    folder: Path,
    system: str,
    form: str,
    *,
    format: str = "onnx",
    file: str = "model.onnx",
    python: str | Path = sys.executable,
) -> tuple[Path, np.ndarray, dict[str, np.ndarray], float]:
    """Return the file, its input, and what the product finds with its time."""
    from denseclip_d2 import Predictor, model_zoo
    from denseclip_d2.shapes.scene import draw_scene

    config = f"Shapes/denseclip_{system}_tiny.yaml"
    output = folder / f"{system}-{form}-{format}"
    options = ["--config-file", f"denseclip://{config}", "--output", str(output), "--overwrite"]
    options += ["--format", format, "--size", *map(str, SIZE), *FORMS.get(form, ["--preprocessed"])]
    subprocess.run([python, "tools/export_model.py", *options], check=True, capture_output=True)
    image = np.array(draw_scene(np.random.default_rng(7), *SIZE)[1])
    predictor = Predictor(model_zoo.get_config(config, trained=True))
    found, milliseconds = timed(predictor, image[:, :, ::-1].copy())
    if "sem_seg" in found:
        expected = {"labels": found["sem_seg"].argmax(0)[None].numpy()}
    else:
        fields = found["instances"].get_fields()
        expected = {
            "boxes": fields["pred_boxes"].tensor.numpy(),
            "scores": fields["scores"].numpy(),
            "classes": fields["pred_classes"].numpy(),
        }
    images = image[None]
    if form != "whole":
        mean, std = (x.numpy() for x in (predictor.model.pixel_mean, predictor.model.pixel_std))
        images = ((image.transpose(2, 0, 1) - mean) / std)[None].astype(np.float32)
    return output / file, np.ascontiguousarray(images), expected, milliseconds


def difference(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str:
    """Return what differs by more than is allowed; "" if nothing does."""
    if "labels" in expected:
        same = (given["labels"] == expected["labels"]).mean()
        return "" if same >= LABELS else f"{same:.1%} of the labels are the same"
    if len(given["scores"]) != len(expected["scores"]):
        return f"{len(given['scores'])} of {len(expected['scores'])} detections"
    order = [np.lexsort((x["boxes"][:, 0].round(), -x["scores"].round(3))) for x in (given, expected)]
    for name, most in (("classes", 0), ("boxes", PIXELS), ("scores", SCORES)):
        apart = np.abs(given[name][order[0]] - expected[name][order[1]]).max(initial=0)
        if not apart <= most:
            return f"{name} differ by {apart:.2g}"
    return ""


def decoded(found: dict[str, np.ndarray], file: Path, about: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the outputs of a file of heads, decoded by the page beside it."""
    page: dict = {}
    exec(file.with_name("decode.py").read_text(encoding="utf-8"), page)
    return page["decode"](found, about, SIZE)


def cell(python: Path, package: str, file: Path, images: Path, expected: dict[str, np.ndarray]) -> str:
    """Return what the table says of a file in a runtime."""
    import onnx

    if not python.exists():
        return f"needs {PYTHONS[package]}"
    model = onnx.load(file)
    names = [x.name for x in model.graph.output]
    command = [python, "-I", __file__, package, str(file), str(images), ",".join(names)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    if done.returncode:
        return f"status {done.returncode}: {first_error(done.stderr)}"
    found, milliseconds = pickle.loads(Path(f"{images}.{package}").read_bytes())
    if "logits" in found:
        found = decoded(found, file, {x.key: x.value for x in model.metadata_props})
    return difference(found, expected) or f"{milliseconds:.0f} ms"


def environment(folder: Path, own: str = "") -> Path:
    """Return the Python of a new environment: of one runtime, or of all that share one."""
    made = folder / f"venv{own}"
    python, base = made / "bin/python", shutil.which(PYTHONS[own]) if own else sys.executable
    if not base or subprocess.run([base, "-m", "venv", str(made)]).returncode:
        return python
    names = [own] if own else [name for name in PACKAGES if name not in PYTHONS]
    packages = ["numpy", *(f"{name}=={PACKAGES[name]}" for name in names)]
    packages += [] if own else ["iree-base-runtime==3.13.0"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-I", "-m", "pip", "install", *quiet, *packages], check=True)
    return python


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {name: environment(folder, name) for name in PYTHONS}
    pythons = dict.fromkeys(PACKAGES, environment(folder)) | pythons
    print("| | eager |", " | ".join(f"{name} {version}" for name, version in PACKAGES.items()), "|")
    print("|---" * (len(PACKAGES) + 2) + "|")
    for system, form in ROWS:
        file, pixels, expected, milliseconds = exported(folder, system, form)
        images = file.with_name("images.npy")
        np.save(images, pixels)
        cells = [
            "-" if form == "whole" and package in NO_SUPPRESSION and "boxes" in expected
            else cell(python, package, file, images, expected)
            for package, python in pythons.items()
        ]  # fmt: skip
        print(f"| {system}, {form} | {milliseconds:.0f} ms |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        answer(*sys.argv[1:])
