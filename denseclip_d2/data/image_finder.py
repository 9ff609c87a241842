from collections import defaultdict
from functools import cached_property
from itertools import takewhile
from os.path import normpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote, urlsplit

from .coco_source import find_files, listed


class ImageFinder:
    """Find the images of annotations in a folder, whatever prefix a tool wrote before their names."""

    def __init__(self, root: Path):
        self.root = root  # absolute

    def find(self, file_name: str) -> Path:
        """Return the path of an image.

        This is the file of that name in the folder. Otherwise it is the file in the folder that shares the
        longest end with ``file_name``, which may be a URL or a Windows path. Otherwise it is ``file_name``
        itself, which may not exist.

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
        if matches:
            found = listed([path.relative_to(self.root) for path in sorted(matches)], 3)
            raise ValueError(
                f"{file_name!r} may be any of {len(matches)} files in {self.root}: {found}. Give the folder "
                "that the file names begin from."
            )
        return exact

    def _matches(self, parts: tuple[str, ...]) -> list[Path]:
        """Return the files that share the most last parts of a path."""
        shared = {}
        for path in self._by_name.get(parts[-1], ()):
            own = path.relative_to(self.root).parts
            pairs = zip(reversed(own), reversed(parts), strict=False)
            shared[path] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return [path for path, count in shared.items() if count == max(shared.values())]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        files = defaultdict(list)
        for path in find_files(self.root):
            files[path.name].append(path)
        return files


def _parts(file_name: str) -> tuple[str, ...]:
    """Return the folders and the name in a path, a URL or a Windows path."""
    if "://" in file_name:
        url = urlsplit(file_name)
        # Label Studio's local files are in the query: /data/local-files/?d=folder/a.png
        file_name = unquote(url.query.partition("d=")[2] or url.path)
    elif "?d=" in file_name:
        file_name = unquote(file_name.partition("?d=")[2])
    path = PureWindowsPath(file_name) if "\\" in file_name else PurePosixPath(file_name)
    return tuple(part for part in path.parts if part not in (path.anchor, "..", "."))
