"""The pages of the site, as MkDocs asks for them: Markdown files of the repository, and those of the API."""

import ast
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/site")]

from config_keys import config_keys_page  # noqa: E402

FIRST = ["README.md", "GETTING_STARTED.md"]
LAST = [
    "MODEL_ZOO.md",
    "denseclip_d2/model_zoo/weights/photographs.md",
    "denseclip_d2/model_zoo/weights/photographs_faster_rcnn.md",
    "denseclip_d2/model_zoo/weights/camvid_semantic_fpn.md",
    "datasets/README.md",
    "findings/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
GUIDES = [f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))]
CSS = "td:first-child code { white-space: nowrap; }"
LINK = re.compile(r"\]\(\s*([^)\s#]+)")
FENCE = re.compile(r"(^```.*?^```\n)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_config(config: MkDocsConfig) -> None:
    """Set the table of contents, and headings' anchors as GitHub makes them."""
    api = [{module: f"api/{module}.md"} for module in _public_modules()]
    config.nav = [*FIRST, {"Guides": GUIDES}, {"Reference": ["config_keys.md", *LAST]}, {"API": api}]
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages, with the images and files that they link to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)  # it comes under the path that it has in the repository, for links to it to hold
    paths = {*FIRST, *GUIDES, *LAST}
    for page in [*paths]:
        for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = (ROOT / page).parent / link
            if target.is_file():
                paths.add(target.resolve().relative_to(ROOT).as_posix())
    for path in sorted(paths):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "extra.css", content=CSS))
    files.append(File.generated(config, "config_keys.md", content=config_keys_page()))
    for module in _public_modules():
        content = f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, f"api/{module}.md", content=content))


def on_page_markdown(markdown: str, **_) -> str:
    """Indent lists as Python-Markdown needs it: GitHub takes less, and no blank line before a list."""
    parts = FENCE.split(markdown)
    for i in range(0, len(parts), 2):
        text = re.sub(r"^ {2,3}(?=[-*] |\d+\. )", "    ", parts[i], flags=re.MULTILINE)
        parts[i] = re.sub(r"^(?![-*|#>]|\d+\. |\s)(.+)\n(?=[-*] |1\. )", r"\1\n\n", text, flags=re.MULTILINE)
    return "".join(parts)


def on_page_content(html: str, **_) -> str:
    """Leave out the roles of reStructuredText that docstrings have, and set what they return apart."""
    return ROLE.sub("", html).replace("<p>Returns: ", "<p><strong>Returns:</strong> ")


def _public_modules() -> list[str]:
    """Return the package and its subpackages that list what is public of them."""
    files = [ROOT / "denseclip_d2/__init__.py", *sorted(ROOT.glob("denseclip_d2/*/__init__.py"))]
    return [
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in files
        if any(
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for node in ast.parse(file.read_text(encoding="utf-8")).body
        )
    ]
