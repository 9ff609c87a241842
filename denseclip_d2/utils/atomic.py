"""Atomic writes: files and folders exist completely or not at all, whatever kills the process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".partial"
"""The end of the name under which a file or folder is written."""


@contextmanager
def atomic_write(path: Path, mode: str, **kwargs) -> Iterator[IO]:
    """Open a file that appears under its name if the block succeeds, and is removed otherwise.

    Args:
        mode, kwargs: as for ``open``.
    """
    with atomic_path(path) as aside, aside.open(mode, **kwargs) as file:
        yield file


@contextmanager
def atomic_path(path: Path, suffix: str = SUFFIX) -> Iterator[Path]:
    """Yield a path to write to in the same folder.

    If the block succeeds, the file is flushed to the disk and renamed to ``path``. Otherwise it is removed.

    Args:
        suffix: end of the temporary name.
    """
    aside = path.with_name(f".{path.name}{suffix}")
    try:
        yield aside
        _sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some network file systems refuse
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Make a folder that becomes ``folder`` if the block ends without error, and is removed otherwise.

    Args:
        folder: does not exist, or is empty.
    """
    # With the process id, two runs that started together write into separate folders.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # a no-op after the rename
