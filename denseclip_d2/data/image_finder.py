from collections import defaultdict
from functools import cached_property
from os.path import normpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote, urlsplit

from .coco_source import find_files


class ImageFinder:
    """Find the images of annotations in a folder, under whatever prefix a tool wrote before their names."""

    def __init__(self, root: Path):
        """
        Args:
            root: an existing folder, absolute.
        """
        self.root = root

    def find(self, file_name: str) -> Path:
        """Return the path of an image.

        It is the file of that name below the folder. Otherwise it is the file below the folder that shares
        the longest end with ``file_name`` (which may be a URL, or have backslashes), if there is one such
        file alone; otherwise what ``file_name`` names, which may not exist.

        Raises:
            ValueError: several files match equally well.
        """
        exact = Path(normpath(self.root / file_name))
        if exact.is_relative_to(self.root) and exact.is_file():
            return exact
        parts = _parts(file_name)
        matches = self._matches(parts) if parts else []
        if len(matches) == 1:
            return matches[0]
        if len(matches) > 1:
            found = ", ".join(str(path.relative_to(self.root)) for path in sorted(matches)[:3])
            raise ValueError(
                f"{file_name!r} may be any of {len(matches)} files in {self.root}: {found}. "
                "Name the folder that the file names begin from."
            )
        return exact

    def _matches(self, parts: tuple[str, ...]) -> list[Path]:
        """Return the files that share the most last parts of a path."""
        best: list[Path] = []
        longest = 1
        for path in self._by_name.get(parts[-1], ()):
            own = path.relative_to(self.root).parts
            pairs = zip(reversed(own), reversed(parts), strict=False)
            shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(parts)))
            if shared > longest:
                best, longest = [path], shared
            elif shared == longest:
                best.append(path)
        return best

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        files = defaultdict(list)
        for path in find_files(self.root):
            files[path.name].append(path)
        return files


def _parts(file_name: str) -> tuple[str, ...]:
    """Return the folders and the name that a path, a URL or a Windows path consists of."""
    if "://" in file_name:
        url = urlsplit(file_name)
        # Label Studio's local files are in the query: /data/local-files/?d=folder/a.png
        file_name = unquote(url.query.partition("d=")[2] or url.path)
    elif "?d=" in file_name:
        file_name = unquote(file_name.partition("?d=")[2])
    path = PureWindowsPath(file_name) if "\\" in file_name else PurePosixPath(file_name)
    return tuple(part for part in path.parts if part not in (path.anchor, "..", "."))
