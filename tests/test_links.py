"""Links in the Markdown pages lead to existing files, images and headings. Web links are not tested."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", ".github", "datasets", "docs", "examples", "findings")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
CODE = re.compile(r"^(```|~~~).*?^\1|(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def links(page: Path) -> list[str]:
    return ["".join(match) for match in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))]


def anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of a page's headings, and the explicit anchors."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found, seen = set(re.findall(r"(?:id|name)=\"([^\"]+)\"", text)), Counter[str]()
    for heading in HEADING.findall(text):
        words = re.sub(r"\]\([^)]*\)", "", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            broken.append(f"{link}: no such file")
        elif parts.fragment and file.suffix == ".md" and unquote(parts.fragment) not in anchors(file):
            broken.append(f"{link}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_images_and_headings(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `b` (c), d-e\n```sh\n# no heading\n```\n## Twice\n## Twice\n")
    page = tmp_path / "page.md"
    good = "[a](other.md#a-b-c-d-e) [b](other.md#twice-1) `[code](no.md)` [c](#here)"
    page.write_text(f"# Here\n{good} [web](http://a.org/#x)\n```\n[fenced](no.md)\n```\n[ref]: other.md\n")
    assert broken_links(page) == []
    bad = ["other.md#no-heading", "no.md", "#away", "../up.md", "no.png"]
    page.write_text("# Here\n" + " ".join(f"[x]({link})" for link in bad[:-1]) + f'\n<img src="{bad[-1]}">')
    assert [line.split(": ")[0] for line in broken_links(page)] == bad
