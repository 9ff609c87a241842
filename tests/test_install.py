"""The package after ``pip install``: its wheel in an environment and a folder without the clone."""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from denseclip_d2 import __version__
from denseclip_d2.doctor.software import PYTHONS
from denseclip_d2.shapes.dataset import generate_shapes

ROOT = Path(__file__).parents[1]
CONFIG = "Shapes/denseclip_retinanet_tiny.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNDECLARED = {
    "detectron2": "not on PyPI under its own name",
    "panopticapi": "not on PyPI",
    "triton": "comes with torch where there are GPUs for it",
}
"""Imports that are not requirements, with the reason."""
INDIRECT = {"ftfy", "sentencepiece", "shapely"}
"""Requirements that other packages import on behalf of this one."""


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {r.name.lower().replace("_", "-"): r for r in map(Requirement, lines)}


def imported(folder: str) -> set[str]:
    """Return all modules outside the standard library that files import."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"denseclip_d2"}


def test_what_is_imported_is_declared_and_nothing_else():
    """Names of distributions come from the installed ones."""
    modules = (imported("denseclip_d2") | imported("tools")) - UNDECLARED.keys()
    distributions = importlib.metadata.packages_distributions()
    declared = requirements(*(extra for extra in PROJECT["optional-dependencies"] if extra != "dev"))
    for module in modules:
        names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
        assert names & declared.keys(), f"{module}: none of {names} is declared in pyproject.toml"
    used = {n.lower().replace("_", "-") for module in modules for n in distributions.get(module, [module])}
    assert declared.keys() - used == INDIRECT


def test_the_versions_known_to_work_are_allowed_and_each_has_a_lower_bound():
    pins = dict(
        line.partition(" ")[0].split("==")
        for file in ("requirements.txt", "Makefile")
        for line in (ROOT / file).read_text(encoding="utf-8").replace(" := ", "\n").splitlines()
        if "==" in line and not line.startswith(("\t", "#"))
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for name, requirement in requirements(*PROJECT["optional-dependencies"]).items():
        assert ">=" in str(requirement.specifier), requirement
        assert requirement.specifier.contains(pinned[name]), requirement


def test_the_supported_pythons_are_the_same_everywhere():
    prefix = "Programming Language :: Python :: "
    versions = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert [f"{major}.{minor}" for major, minor in PYTHONS] == versions
    assert f"{'|'.join(versions)}) ;;" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from copies of the sources, because a build leaves folders beside them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("denseclip_d2", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


def pip(*args, python: Path = Path(sys.executable)) -> None:
    """Run the current environment's pip without an index on an environment that may lack pip."""
    options = ["--python", python, "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", *options, *args[:1], "--no-deps", "--no-index", *args[1:])


def run(*command, cwd: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Return the program folder of an environment with the wheel and this environment's packages."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True, with_pip=False)
    python = root / "bin/python"
    pip("install", wheel, python=python)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path in a .pth file adds its packages, but not the .pth files there, such as an editable install.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(packages) / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return root / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_no_more(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = ROOT / "denseclip_d2"
    expected = {str(path.relative_to(ROOT)) for path in source.rglob("*.py") if "configs" not in path.parts}
    expected |= {f"denseclip_d2/{name}" for name in ("py.typed", "report/page.html", "model_zoo/index.json")}
    for pattern in ("clip_models/*.json", "model_zoo/weights/*", "web_demo/photographs/*"):
        expected |= {str(path.relative_to(ROOT)) for path in source.glob(pattern)}
    configs = {path for path in (ROOT / "configs").rglob("*") if path.suffix in (".yaml", ".py")}
    expected |= {f"denseclip_d2/model_zoo/{path.relative_to(ROOT)}" for path in configs}
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_an_installed_package_predicts_trains_and_exports(environment, tmp_path):
    """In an empty folder, from Python and by the console command."""
    data, empty = tmp_path / "data", tmp_path / "empty"
    generate_shapes(data, num_train=4, num_val=1)
    empty.mkdir()
    image = next((data / "val").iterdir())
    code = f"""
import importlib.metadata, sys
from pathlib import Path
import denseclip_d2
assert Path(denseclip_d2.__file__).is_relative_to(sys.prefix), denseclip_d2.__file__
assert importlib.metadata.version("denseclip_d2") == denseclip_d2.__version__ == "{__version__}"
predictor = denseclip_d2.Predictor.from_zoo("{CONFIG}")
print(len(predictor({str(image)!r})["instances"]))
"""
    assert int(run(environment / "python", "-W", "ignore", "-c", code, cwd=empty)) > 0
    denseclip = environment / "denseclip"
    few = {
        "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0, "TEST.REPORT": False,
        "OUTPUT_DIR": "trained",
    }  # fmt: skip
    annotations = data / "annotations/instances_train.json"
    options = ["--train", annotations, data / "train", "--val", annotations, data / "train"]
    opts = (x for pair in few.items() for x in pair)
    run(denseclip, "train", "--config-file", f"configs/{CONFIG}", *options, *opts, cwd=empty)
    metrics = (empty / "trained/metrics.json").read_text(encoding="utf-8").splitlines()
    assert "bbox/AP" in json.loads(metrics[-1]) and (empty / "trained/model_final.pth").is_file()
    run(
        denseclip, "export", "--config-file", f"denseclip://{CONFIG}", "--format", "onnx",
        "--images", image, "--output", "exported", cwd=empty,
    )  # fmt: skip
    assert (empty / "exported/model.onnx").stat().st_size > 2**20
