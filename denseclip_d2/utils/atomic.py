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
    """Open a file that appears under its name if the block ends without error, and otherwise not at all.

    The file is written under another name in its directory, flushed to the disk and renamed.

    Args:
        mode, kwargs: as for ``open``.
    """
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
    """Make a renaming survive a power cut, where the file system supports that."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
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
