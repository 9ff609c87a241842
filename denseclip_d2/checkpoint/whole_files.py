from pathlib import Path

from ..utils.atomic import SUFFIX, atomic_write


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
        return atomic_write(Path(path), mode, **kwargs)
