"""Run the zoo's models, exported as torch.export programs for other runtimes, and print what works.

python examples/programs.py FOLDER    # for the files and an environment of each runtime

RetinaNet is exported up to its heads. Files take images of one size. An environment has the packages of the
one that runs this script, and those of its runtime.
"""

import json
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from runtimes import PROGRAM, SECONDS, SIZE, Run, decoded, difference, exported, timed

Loaded = tuple[Run, str]
"""A model, and its metadata ``decoding``."""


def torch_export(file: str) -> Loaded:
    import torch

    about = {"decoding": ""}
    model = torch.export.load(file, extra_files=about).module(check_guards=False)

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x.numpy() for name, x in model(torch.from_numpy(images)).items()}

    return run, about["decoding"]


def aoti(file: str) -> Loaded:
    import torch

    model = torch._inductor.aoti_load_package(file)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x.numpy() for name, x in model(torch.from_numpy(images)).items()}

    return run, model.get_metadata().get("decoding", "")


def executorch(file: str) -> Loaded:
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    names, decoding = (
        program.load_method(x).execute([])[0] if x in program.method_names else ""
        for x in ("outputs", "decoding")
    )
    model = program.load_method("forward")

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model.execute([torch.from_numpy(images)])
        return {name: x.clone().numpy() for name, x in zip(json.loads(names), outputs, strict=True)}

    return run, decoding


def litert(file: str) -> Loaded:
    from ai_edge_litert.interpreter import Interpreter

    with ZipFile(file) as archive:
        decoding = archive.read("decoding").decode() if "decoding" in archive.namelist() else ""
    model = Interpreter(file).get_signature_runner()
    (name,) = model.get_input_details()
    return lambda images: model(**{name: images}), decoding


RUNTIMES = {
    "torch_export": (torch_export, "model.pt2", ""),
    "aoti": (aoti, "model.aoti.pt2", ""),
    "executorch": (executorch, "model.pte", "executorch==1.5.1"),
    "litert": (litert, "model.tflite", "litert-torch==0.10.0"),
}
"""The formats of tools/export_model.py: the runtime, the file and the package."""


def answer(format: str, file: str, images: str) -> None:
    """Write what a file returns, its time and the numbers of its decoder beside the images."""
    run, decoding = RUNTIMES[format][0](file)
    Path(f"{images}.{format}").write_bytes(pickle.dumps((*timed(run, np.load(images)), decoding)))


def environment(folder: Path, package: str) -> Path:
    """Return the Python of a new environment that has this one's packages and one more."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, package], check=True, capture_output=True)
    return python


def cell(python: str | Path, folder: Path, system: str, format: str) -> tuple[str, float]:
    """Return what the table says of a system in a format, and eager's milliseconds."""
    options = {"format": format, "file": RUNTIMES[format][1], "python": python}
    file, pixels, expected, eager = exported(folder, system, PROGRAM, **options)
    images = file.with_name("images.npy")
    np.save(images, pixels)
    command = [python, "-W", "ignore", __file__, format, str(file), str(images)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s", eager
    if done.returncode:
        return (
            f"status {done.returncode}: {(done.stderr.splitlines() or ['it says nothing'])[-1][:160]}",
            eager,
        )
    found, milliseconds, decoding = pickle.loads(Path(f"{images}.{format}").read_bytes())
    if "logits" in found:
        found = decoded(found, file, {"decoding": decoding})
    return difference(found, expected) or f"{milliseconds:.0f} ms", eager


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {
        format: environment(folder / f"venv-{format}", package) if package else sys.executable
        for format, (_, _, package) in RUNTIMES.items()
    }
    print("| | eager |", " | ".join(package or name for name, (_, _, package) in RUNTIMES.items()), "|")
    print("|---" * (len(RUNTIMES) + 2) + "|")
    for system in ("retinanet", "semantic_fpn"):
        cells = [cell(python, folder, system, format) for format, python in pythons.items()]
        print(f"| {system} | {cells[0][1]:.0f} ms |", " | ".join(x for x, _ in cells), "|", flush=True)
        run_page(pythons["litert"], folder / f"{system}-{PROGRAM}-litert" / "model.tflite")


def run_page(python: str | Path, file: Path) -> None:
    """Print what examples/litert/detect.py finds in an image that is larger than those of the file."""
    from denseclip_d2.shapes.scene import draw_scene

    image = file.with_name("image.png")
    draw_scene(np.random.default_rng(7), *(2 * side for side in SIZE))[1].save(image)
    page = Path(__file__).with_name("litert") / "detect.py"
    subprocess.run([python, page, str(file), str(image), "0.3"], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        answer(*sys.argv[1:])
