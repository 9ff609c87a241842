"""End a program in one line at an error that a person can mend, and keep the traceback of a possible bug."""

import builtins
import io
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.data.detection_utils import SizeMismatchError
from torch.multiprocessing import ProcessRaisedException

PACKAGE = Path(__file__).resolve().parents[1]
OURS = (ValueError, ImportError, FloatingPointError)
"""Errors that this package raises about data, a config or a machine. From other code they may be bugs."""
ALWAYS = (OSError, MemoryError, SizeMismatchError)
"""Errors that are about data or a machine, whoever raises them."""

_MEMORY = "Lower SOLVER.IMS_PER_BATCH, or the sizes under INPUT, or free memory."
# Words of gloo and NCCL in the processes that are left.
_ENDED = ("Connection closed by peer", "remote process exited")
# The end of a traceback as text: file and first line of the last frame, class and words of the error.
_END = re.compile(
    r'.*File "(?P<file>[^"\n]+)", line \d+, in [^\n]+\n    (?P<line>[^\n]*)\n(?:    [^\n]*\n)*'
    r"(?P<kind>[\w.]+): (?P<words>.*)",
    re.DOTALL,
)


def format_error(error: BaseException) -> str:
    """Return the words of an error about data, a config or a machine; "" if the error may be a bug.

    Errors that this package raises and errors of files and memory have words. Of an error in another process,
    such as a worker of a data loader, the text of its traceback is read.
    """
    kind, words, frames = type(error), str(error), traceback.extract_tb(error.__traceback__)
    frame, line = (frames[-1].filename, frames[-1].line or "") if frames else ("", "")
    afar = isinstance(error, ProcessRaisedException) or words.startswith(f"Caught {kind.__name__} in ")
    if afar and (end := _END.fullmatch(words.rstrip())):
        frame, line, words = end["file"], end["line"], end["words"]
        kind = _class_of(end["kind"])
    if issubclass(kind, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in words:
        return f"Out of memory: {words.splitlines()[0]} {_MEMORY}"
    if issubclass(kind, RuntimeError) and any(sign in words for sign in _ENDED):
        return (
            "Another process has ended, and this process cannot go on alone. See the error of the other one."
        )
    if issubclass(kind, ALWAYS):
        return words or kind.__name__
    # A ValueError of C code, such as "not enough values to unpack", has no frame of its own.
    raised = issubclass(kind, OURS) and line.startswith("raise")
    return words if raised and PACKAGE in Path(frame).resolve().parents else ""


def _class_of(name: str) -> type[BaseException]:
    """Return the class of an error by its name in a traceback; Exception if there is none here."""
    module, _, name = name.rpartition(".")
    found = getattr(sys.modules.get(module, builtins), name, Exception)
    return found if isinstance(found, type) and issubclass(found, BaseException) else Exception


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with ``error: ...`` and exit status 1 at an error that :func:`format_error` knows."""
    # A name may have letters that the encoding of the terminal lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except Exception as error:
        if line := format_error(error):
            sys.exit(f"error: {line}")
        raise


def keep_tracebacks_in_the_log(loggers: Iterable[str] = ("detectron2", "fvcore", "denseclip_d2")) -> None:
    """Write the tracebacks of errors that :func:`format_error` knows to log.txt, and not to the console.

    The file becomes UTF-8, whatever the locale.

    Args:
        loggers: the names of loggers that Detectron2's ``setup_logger`` has set up.
    """
    for handler in [handler for name in loggers for handler in logging.getLogger(name).handlers]:
        stream = getattr(handler, "stream", None)
        if stream in (sys.stdout, sys.stderr):
            handler.addFilter(_is_no_known_error)
        elif isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _is_no_known_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[1] and format_error(record.exc_info[1]))
