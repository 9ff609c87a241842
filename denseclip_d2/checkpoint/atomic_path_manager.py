from pathlib import Path

from ..utils.atomic import SUFFIX, atomic_write


class AtomicPathManager:
    """A path manager as iopath's that writes local files atomically.

    The next write removes what killed runs left behind. The given path manager handles other files.
    """

    def __init__(self, path_manager):
        self._path_manager = path_manager

    def __getattr__(self, name: str):
        return getattr(self._path_manager, name)

    def open(self, path: str, mode: str = "r", **kwargs):
        """Open a file as iopath does; a written file appears when the ``with`` block ends without error."""
        if "w" not in mode or "://" in path:
            return self._path_manager.open(path, mode, **kwargs)
        for stale in Path(path).parent.glob(f".*.pth{SUFFIX}"):
            stale.unlink(missing_ok=True)
        return atomic_write(Path(path), mode, **kwargs)
