import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"


class WholeFiles:
    """A path manager as iopath's, whose written files are there whole or not at all, whatever kills the run.

    A file is written under another name in its directory, flushed to the disk and renamed. The next write
    removes what killed runs left behind. Files that are not local are left to the path manager given.
    """

    def __init__(self, path_manager):
        self._path_manager = path_manager

    def __getattr__(self, name: str):
        return getattr(self._path_manager, name)

    def open(self, path: str, mode: str = "r", **kwargs):
        """As iopath's, but what is written ("w", "wb") appears when the ``with`` block ends well."""
        if "w" not in mode or "://" in path:
            return self._path_manager.open(path, mode, **kwargs)
        for stale in Path(path).parent.glob(f".*.pth{SUFFIX}"):
            stale.unlink(missing_ok=True)
        return written_whole(Path(path), mode, **kwargs)


@contextmanager
def written_whole(path: Path, mode: str, **kwargs) -> Iterator[IO]:
    aside = path.with_name(f".{path.name}{SUFFIX}")
    try:
        with aside.open(mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a renaming last through a power cut; some network file systems refuse, and need not be asked."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
