"""The source: imports between subpackages (CONTRIBUTING.md has the table), lengths, and encodings of text."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "denseclip_d2"


def part_of(path: Path) -> str:
    """Return the folder of the package that has the file, or the module's name if no folder has it."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return all modules of the package that a file imports, as paths below the package."""
    imported = set()
    package = ["denseclip_d2", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            imported |= {f"{module}.{alias.name}" for alias in node.names}
    own = (name.split(".")[1] for name in imported if name.startswith("denseclip_d2."))
    return {name for name in own if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def test_subpackages_import_each_other_in_one_direction():
    parts: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "__init__.py":
            parts.setdefault(part_of(path), set()).update(imports_of(path) - {part_of(path)})
    assert parts["engine"] >= {"checkpoint", "data", "evaluation"}  # imports are found
    assert len([*TopologicalSorter(parts).static_order()]) == len(parts)  # raises CycleError with their names


def test_no_module_imports_from_the_top_of_the_package():
    """``denseclip_d2/__init__.py`` imports the subpackages first, so that none of them can import from it."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is None and path.parent != PACKAGE:
                names = {alias.name for alias in node.names}
                parent = path.parents[node.level - 1]
                assert all((parent / n).is_dir() or (parent / f"{n}.py").is_file() for n in names), path


def test_one_place_makes_models_ready_to_run():
    others = PACKAGE / "pretraining"  # a CLIP's config, not a model's
    makers = [
        p for p in PACKAGE.rglob("*.py") if "channels_last" in p.read_text() and others not in p.parents
    ]
    assert [p.name for p in makers] == ["builder.py"]


def test_contributing_lists_every_subpackage_below_those_that_it_imports():
    lines = (PACKAGE.parent / "CONTRIBUTING.md").read_text().splitlines()
    listed = [line.split("`")[1] for line in lines if line.startswith("| `")]
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert sorted(listed) == sorted(parts)
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) != "__init__":
            above = listed[: listed.index(part_of(path)) + 1]
            assert imports_of(path) <= set(above), path


def test_files_and_functions_are_short():
    """Files have at most 300 lines, and functions 50. ``add_denseclip_config`` is a list of keys."""
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tools").glob("*.py")]:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name != "add_denseclip_config":
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_text_is_read_and_written_in_an_encoding_that_the_locale_does_not_choose():
    root = PACKAGE.parent
    programs = [p for folder in ("tools", "datasets", "examples") for p in (root / folder).glob("*.py")]
    for path in [*PACKAGE.rglob("*.py"), *programs, root / "setup.py"]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and _opens_text(call):
                assert {"encoding", None} & {k.arg for k in call.keywords}, f"{path}:{call.lineno}"


def _opens_text(call: ast.Call) -> bool:
    """Return whether a call opens a file as text. Pillow's, the system's and binary ones do not."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    of = getattr(getattr(call.func, "value", None), "id", "")
    if name in ("open", "written_whole"):
        modes = [a.value for a in ast.walk(call) if isinstance(a, ast.Constant)]
        is_folder = name == "written_whole" and len(call.args) < 2
        return of not in ("Image", "os") and not is_folder and not {"rb", "wb", "ab"} & {*modes}
    return name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
