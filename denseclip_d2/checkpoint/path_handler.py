from collections.abc import Callable

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler


class ResolvedPathHandler(PathHandler):
    """Have Detectron2's ``PathManager`` read paths of a prefix, each of which stands for a local file."""

    def __init__(self, prefix: str, resolve: Callable[[str], str]):
        """
        Args:
            resolve: returns the local file of a path, and may download it.
        """
        super().__init__()
        self._prefix, self._resolve = prefix, resolve

    def _get_supported_prefixes(self) -> list[str]:
        return [self._prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return self._resolve(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)
