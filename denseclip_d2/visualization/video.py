"""Videos, read and written frame by frame."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from threading import Event

import cv2
import numpy as np

from ..utils.atomic import atomic_path

VIDEO_SUFFIXES = {
    ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv",
}  # fmt: skip
USUAL_FPS = 25.0
"""Frames per second of a video whose file does not say."""


def frame_count(path: str) -> int:
    """Return the number of frames in the file's header, or 0 if it is unknown or the file is unreadable."""
    return max(int(_open(path).get(cv2.CAP_PROP_FRAME_COUNT)), 0)


def frame_rate(path: str) -> float:
    """Return the frames per second of a video."""
    rate = _open(path).get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate <= 1000 else USUAL_FPS


def read_frames(path: str, *, live: bool = False) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8, BGR, upright.

    Args:
        path: path of a video; number or address of a camera.
        live: read a camera to its end or until Ctrl-C, which then does not stop the program.

    Raises:
        ValueError: the source cannot be opened, a video is truncated, or a camera gives no image.
    """
    capture, count = _open(path), 0
    if not capture.isOpened():
        raise ValueError(
            f"{path}: there is no such camera, or another program uses it."
            if live
            else f"{path} cannot be read as a video."
        )
    promised, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    with _interruption(live) as interrupted:
        while not interrupted.is_set():
            there, frame = capture.read()
            if not there:
                break
            count += 1
            yield frame
    if live and not count and not interrupted.is_set():
        raise ValueError(f"{path}: the camera gives no image. Another program may use it.")
    # Some containers estimate their number of frames. A difference of one second is accepted.
    if not live and (not count or count + max(rate, 1) < promised):
        raise ValueError(f"{path} breaks off after {count} of {promised:.0f} frames.")


def write_video(path: Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Write frames (H, W, 3), RGB, of one size, at least one, to an MP4 file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    frames = iter(frames)
    first = next(frames)
    height, width = (side // 2 * 2 for side in first.shape[:2])  # the codec takes even sides
    with atomic_path(path, f".partial{path.suffix}") as partial:  # OpenCV reads the format from the suffix
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
        if not writer.isOpened():
            raise OSError(f"{path}: OpenCV cannot write an MP4 video here.")
        for frame in chain([first], frames):
            writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
        writer.release()


def _open(path: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(int(path) if path.isdecimal() else path)


@contextmanager
def _interruption(live: bool) -> Iterator[Event]:
    """Yield an event. Ctrl-C sets it while a camera is read, so that the frames so far are kept."""
    interrupted = Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set()) if live else None
    try:
        yield interrupted
    finally:
        if live:
            signal.signal(signal.SIGINT, before)
