"""Run the zoo's models, exported to ONNX, in several runtimes, and print what works.

python examples/runtimes.py FOLDER    # for the files and an environment of the runtimes

Each pair of a file and a runtime has a process of its own. Files take images of one size: whole, and of
RetinaNet also up to the heads. The table has the time of each, beside eager's.
"""

import pickle
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
}
SYSTEMS = ("retinanet", "mask_rcnn", "semantic_fpn")
FORMS: dict[str, list[str]] = {"whole": [], "heads": ["--heads", "--preprocessed"]}
PROGRAM = "program"  # of torch.export, by programs.py
SIZE = (128, 160)
PIXELS, SCORES, LABELS = 0.05, 1e-3, 0.999
SECONDS = 120


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

    converter = str(Path(sys.executable).with_name("mnnconvert"))
    options = ["-f", "ONNX", "--modelFile", file, "--MNNModel", f"{file}.mnn", "--bizCode", "denseclip"]
    subprocess.run([converter, *options], check=True, capture_output=True)
    model = MNN.nn.load_module_from_file(f"{file}.mnn", ["images"], names)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        kind = MNN.expr.uint8 if images.dtype == np.uint8 else MNN.expr.float
        given = MNN.expr.const(images, list(images.shape), MNN.expr.NCHW, kind)
        found = (MNN.expr.convert(x, MNN.expr.NCHW) for x in model.forward([given]))
        return {name: np.array(x.read()) for name, x in zip(names, found, strict=True)}

    return run


RUNTIMES = dict(zip(PACKAGES, (onnxruntime, openvino, opencv, tract, mnn), strict=True))


def timed(run: Run, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Return what ``run`` returns, and the least of ten times in milliseconds."""
    found, times = run(images), []
    for _ in range(10):
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
            "boxes": fields["pred_boxes"].tensor,
            "scores": fields["scores"],
            "classes": fields["pred_classes"],
        }
        expected = {name: x.numpy() for name, x in expected.items()}
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

    model = onnx.load(file)
    names = [x.name for x in model.graph.output]
    command = [python, "-I", __file__, package, str(file), str(images), ",".join(names)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    if done.returncode:
        said = [x for x in done.stderr.splitlines() if "rror: " in x]
        return f"status {done.returncode}: {said[0][:160] if said else 'it says nothing'}"
    found, milliseconds = pickle.loads(Path(f"{images}.{package}").read_bytes())
    if "logits" in found:
        found = decoded(found, file, {x.key: x.value for x in model.metadata_props})
    return difference(found, expected) or f"{milliseconds:.0f} ms"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    packages = ["numpy", *(f"{name}=={version}" for name, version in PACKAGES.items())]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-I", "-m", "pip", "install", *quiet, *packages], check=True)
    rows = [
        (system, form) for system in SYSTEMS for form in FORMS if form == "whole" or system == "retinanet"
    ]
    print("| | eager |", " | ".join(f"{name} {version}" for name, version in PACKAGES.items()), "|")
    print("|---" * (len(PACKAGES) + 2) + "|")
    for system, form in rows:
        file, pixels, expected, milliseconds = exported(folder, system, form)
        images = file.with_name("images.npy")
        np.save(images, pixels)
        cells = [cell(python, package, file, images, expected) for package in PACKAGES]
        print(f"| {system}, {form} | {milliseconds:.0f} ms |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        answer(*sys.argv[1:])
