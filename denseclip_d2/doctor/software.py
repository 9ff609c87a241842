import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import detectron2

from .finding import Finding

PYTHONS = ((3, 11), (3, 12), (3, 13))
_REQUIREMENT = re.compile(r"([\w.-]+)==([\w.]+)")
# Others of the same modules.
_INSTEAD = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless")}


def look_at_python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] in PYTHONS:
        return Finding("Python", "ok", text)
    return Finding(
        "Python", "wrong", text, "Install Python 3.11 to 3.13, and `make install PYTHON=python3.12`."
    )


def look_at_packages(requirements: Path) -> Finding:
    """Of the versions in a requirements file, which are not installed, or are installed as others."""
    pinned = known_versions(requirements)
    if not pinned:
        return Finding("packages", "note", f"{requirements} is not there to compare with.")
    installed = {name: _installed(name) for name in pinned}
    missing = [name for name, version in installed.items() if version is None]
    others = [
        f"{name} is {version}, known to work is {pinned[name]}"
        for name, version in installed.items()
        if version not in (None, pinned[name])
    ]
    if missing:
        text = "\n".join([f"not installed: {', '.join(missing)}", *others])
        return Finding("packages", "wrong", text, f"`make install`, or `pip install -r {requirements}`.")
    if others:
        way_out = f"If something fails, `pip install -r {requirements}`, or `make install` into .venv."
        return Finding("packages", "note", "\n".join(others), way_out)
    return Finding("packages", "ok", f"the {len(pinned)} of {requirements.name} as known to work")


def known_versions(requirements: Path) -> dict[str, str]:
    """Version by package, of those that running needs: what comes after "# Checks." does not."""
    if not requirements.is_file():
        return {}
    return dict(_REQUIREMENT.findall(requirements.read_text(encoding="utf-8").partition("# Checks.")[0]))


def look_at_detectron2() -> Finding:
    text = f"{detectron2.__version__}, {Path(detectron2.__file__).parent}"
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError as error:
        reason = "without its compiled operators"
        if "cannot import name '_C'" not in str(error):  # they are there, and do not fit
            reason = f"its compiled operators do not load: {error}"
        return Finding(
            "Detectron2", "note", f"{text}, {reason}",
            "Nothing here needs them. For deformable convolution and rotated boxes build it: "
            "`DETECTRON2=source make install`.",
        )  # fmt: skip
    return Finding("Detectron2", "ok", f"{text}, with its compiled operators")


def _installed(name: str) -> str | None:
    for candidate in (name, *_INSTEAD.get(name, ())):
        try:
            return importlib.metadata.version(candidate).partition("+")[0]  # torch adds "+cpu", "+cu130"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
