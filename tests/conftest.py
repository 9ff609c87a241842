import json
import os
import runpy
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from denseclip_d2.data import register_semantic_folder
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES, generate_shapes

# Exact numbers are promised for CPUs only. GPUs are hidden from all tests but those of test_gpu.py.
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
if "DENSECLIP_TESTS_SEE_GPUS" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
needs_a_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs a C++ compiler on CPUs"
)


def run_tool_here(monkeypatch, name: str, *args) -> None:
    """Run a script of tools/ in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")


def load_script(path: str) -> ModuleType:
    """Import a file of the repository that is in no package."""
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Record:
    """A recording of one original module: ``weights``, ``inputs`` and ``outputs`` by name."""

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            tensors = {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind in "fiub"}
            self.strings = {k: arrays[k].tolist() for k in arrays.files if arrays[k].dtype.kind == "U"}
        self.weights, self.inputs, self.outputs = (
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in ("sd/", "in/", "out/")
        )

    def weights_of(self, module: str) -> dict[str, torch.Tensor]:
        prefix = f"{module}."
        return {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}


@pytest.fixture
def reference():
    """Read a recording of the original modules' outputs: ``reference("clip_resnet")``."""

    def read(name: str) -> Record:
        path = SHARED / "reference" / "modules" / f"{name}.npz"
        if not path.exists():
            pytest.skip("the recorded outputs of the original modules are not here (../shared/reference)")
        return Record(path)

    return read


@pytest.fixture
def released_recipe():
    """Read the released recipe's ``{name: (learning rate, weight decay)}`` of each parameter."""

    def read(name: str) -> dict[str, tuple[float, float]]:
        path = SHARED / "reference" / "optim" / f"{name}.json"
        if not path.exists():
            pytest.skip("the recorded recipes are not here (../shared/reference)")
        return {k: tuple(v) for k, v in json.loads(path.read_text())["groups"].items()}

    return read


@pytest.fixture
def coco_root() -> Path:
    """Return the folder that contains COCO, as DETECTRON2_DATASETS would name it."""
    root = SHARED / "datasets"
    if not (root / "coco").exists():
        pytest.skip("no COCO images here (../shared/datasets)")
    return root


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_shapes(tmp_path):
    """Yield the folder, the training set and the test set of a small "shapes" under unique names."""
    root = tmp_path / "shapes"
    generate_shapes(root, num_train=8, num_val=4, seed=3)
    names = [f"{tmp_path.name}_{split}" for split in ("train", "val")]
    for name, split in zip(names, ("train", "val"), strict=True):
        annotations = root / "annotations" / f"instances_{split}.json"
        register_coco_instances(name, {}, str(annotations), str(root / split))
    yield root, *names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def panopticapi(monkeypatch):
    """Replace panopticapi, if it is not installed, by its one function that Detectron2's mapper calls."""
    if find_spec("panopticapi"):
        return
    package, utils = ModuleType("panopticapi"), ModuleType("panopticapi.utils")
    package.__path__ = []
    utils.rgb2id = lambda colors: colors.astype(int) @ np.array([1, 256, 256**2])
    for module in (package, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def serve():
    """Start a local HTTP server from a handler class. It stops after the test."""
    servers = []

    def start(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def catalogs(monkeypatch):
    """Empty Detectron2's catalogs, so that a test can register datasets under existing names."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})


@pytest.fixture
def semantic_shapes(tmp_path, catalogs):
    """Register a small "shapes" as "train" and "val" for semantic segmentation."""
    root = tmp_path / "shapes"
    generate_shapes(root, num_train=8, num_val=4, seed=3)
    for split in ("train", "val"):
        register_semantic_folder(split, root / split, root / "labels" / split, SEMANTIC_CLASS_NAMES)
    return root
