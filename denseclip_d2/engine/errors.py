"""What a person can mend ends in one line; what may be a bug keeps its traceback."""

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
"""What this package raises of data, a config or a machine; in others' code it may be a bug."""
ALWAYS = (OSError, MemoryError, SizeMismatchError)
"""What is of data or a machine whoever raises it."""

_MEMORY = "Lower SOLVER.IMS_PER_BATCH, or the sizes under INPUT, or free memory."
# What gloo and NCCL say in the processes that are left.
_ENDED = ("Connection closed by peer", "remote process exited")
# The end of a traceback as text: the last frame's file and first line of source, the error's class and words.
_END = re.compile(
    r'.*File "(?P<file>[^"\n]+)", line \d+, in [^\n]+\n    (?P<line>[^\n]*)\n(?:    [^\n]*\n)*'
    r"(?P<kind>[\w.]+): (?P<words>.*)",
    re.DOTALL,
)

logger = logging.getLogger(__name__)


def line_of(error: BaseException) -> str:
    """Return what to tell a person whose data, config or machine an error is about; "" if it may be a bug.

    The former are errors that this package raises, and those of files and memory. An error that was raised in
    another process, a data loader's worker or one of several that train, is told by its traceback's text.
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
            "Another process has ended, and this one cannot go on alone. The error of the other is the cause."
        )
    if issubclass(kind, ALWAYS):
        return words or kind.__name__
    # A ValueError of C code, such as "not enough values to unpack", has no frame of its own.
    raised = issubclass(kind, OURS) and line.startswith("raise")
    return words if raised and PACKAGE in Path(frame).resolve().parents else ""


def _class_of(name: str) -> type[BaseException]:
    """The class of an error by its name in a traceback; Exception where it is not known here."""
    module, _, name = name.rpartition(".")
    found = getattr(sys.modules.get(module, builtins), name, Exception)
    return found if isinstance(found, type) and issubclass(found, BaseException) else Exception


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """End the program with ``error: ...`` and exit status 1 at an error that :func:`line_of` has words for.

    Names may be printed that the terminal's encoding does not have.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except Exception as error:
        if line := line_of(error):
            sys.exit(f"error: {line}")
        raise


def keep_traceback(error: BaseException) -> None:
    """Log an error's traceback for a bug's report: after :func:`keep_tracebacks_in_the_log`, into log.txt."""
    logger.debug("Ended by an error:", exc_info=error)


def keep_tracebacks_in_the_log(loggers: Iterable[str] = ("detectron2", "fvcore", "denseclip_d2")) -> None:
    """Keep the tracebacks of errors that :func:`line_of` has words for off the console, and in log.txt.

    The file becomes UTF-8, whatever the locale.

    Args:
        loggers: names of those that Detectron2's ``setup_logger`` has set up.
    """
    for handler in [handler for name in loggers for handler in logging.getLogger(name).handlers]:
        stream = getattr(handler, "stream", None)
        if stream in (sys.stdout, sys.stderr):
            handler.addFilter(_is_no_known_error)
        elif isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _is_no_known_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[1] and line_of(record.exc_info[1]))
