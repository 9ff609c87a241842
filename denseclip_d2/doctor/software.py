import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import detectron2

from .check_result import CheckResult, judge

PYTHONS = ((3, 11), (3, 12), (3, 13))
# Packages with the same modules.
_INSTEAD = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless")}


def check_python() -> CheckResult:
    return judge(
        "Python", sys.version_info[:2] in PYTHONS, f"{platform.python_version()}, {sys.executable}", "wrong",
        "Install Python 3.11 to 3.13, and run `make install PYTHON=python3.12`.",
    )  # fmt: skip


def check_packages(requirements: Path) -> CheckResult:
    """Compare the installed versions with a requirements file."""
    if not (pinned := known_versions(requirements)):
        return CheckResult("packages", "note", f"cannot be compared: {requirements} does not exist")
    installed = {name: _installed(name) for name in pinned}
    missing = [name for name, version in installed.items() if version is None]
    lines = [f"not installed: {', '.join(missing)}"] if missing else []
    lines += [
        f"{name} is {version}, tested is {pinned[name]}"
        for name, version in installed.items()
        if version not in (None, pinned[name])
    ]
    text = "\n".join(lines) or f"the {len(pinned)} tested versions of {requirements.name}"
    fix = f"Run `make install`, or `pip install -r {requirements}`."
    if not missing:
        fix = f"If something fails: {fix}"
    return judge("packages", not lines, text, "wrong" if missing else "note", fix)


def known_versions(requirements: Path) -> dict[str, str]:
    """Return the versions by package, without those after "# Checks.", which only tests need."""
    if not requirements.is_file():
        return {}
    text = requirements.read_text(encoding="utf-8").partition("# Checks.")[0]
    return dict(re.findall(r"([\w.-]+)==([\w.]+)", text))


def check_detectron2() -> CheckResult:
    text, reason = f"{detectron2.__version__}, {Path(detectron2.__file__).parent}", ""
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError as error:
        reason = "without its compiled operators"
        if "cannot import name '_C'" not in str(error):  # they exist, and do not fit
            reason = f"its compiled operators do not load: {error}"
    return judge(
        "Detectron2", not reason, f"{text}, {reason or 'with its compiled operators'}", "note",
        "This project needs none of them. Deformable convolution and rotated boxes do: "
        "`DETECTRON2=source make install`.",
    )  # fmt: skip


def _installed(name: str) -> str | None:
    for candidate in (name, *_INSTEAD.get(name, ())):
        try:
            return importlib.metadata.version(candidate).partition("+")[0]  # torch adds "+cpu", "+cu130"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
