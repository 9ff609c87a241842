"""Videos, read and written frame by frame."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import cv2
import numpy as np

VIDEO_SUFFIXES = {
    ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv",
}  # fmt: skip
USUAL_FPS = 25.0
"""Frames a second of a video that does not say."""


def frame_count(path: str) -> int:
    """As the file says; 0 where it does not, or cannot be opened."""
    return max(int(_property(path, cv2.CAP_PROP_FRAME_COUNT)), 0)


def frame_rate(path: str) -> float:
    """Frames a second."""
    rate = _property(path, cv2.CAP_PROP_FPS)
    return rate if 0 < rate <= 1000 else USUAL_FPS


def read_frames(path: str, *, live: bool = False) -> Iterator[np.ndarray]:
    """Frames, (H, W, 3) uint8, BGR, upright.

    Args:
        path: of a video; of a camera, its number or its address.
        live: read until there is nothing more, or until Ctrl-C, which then stops nothing else.

    Raises:
        ValueError: it cannot be opened, or breaks off; or a camera gives nothing.
    """
    capture, count = _open(path), 0
    try:
        if not capture.isOpened():
            raise ValueError(
                f"{path}: there is no such camera, or another program has it."
                if live
                else f"{path} cannot be read as a video."
            )
        promised, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        with _until_interrupted(live) as interrupted:
            while not interrupted.is_set():
                there, frame = capture.read()
                if not there:
                    break
                count += 1
                yield frame
            stopped = interrupted.is_set()
    finally:
        capture.release()
    if live and not count and not stopped:
        raise ValueError(f"{path}: the camera gives no image. Another program may have it.")
    # Some containers estimate their number of frames: a second is let pass.
    if not live and (not count or count + max(rate, 1) < promised):
        raise ValueError(f"{path} breaks off after {count} of {promised:.0f} frames.")


@contextmanager
def written_video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends a frame (H, W, 3), RGB, to an MP4 file; the file is there whole or not at all.

    Frames are of one size, that of the first.

    Raises:
        OSError: it cannot be written.
    """
    aside = path.with_name(f".{path.stem}.partial{path.suffix}")
    writers: list[cv2.VideoWriter] = []

    def write(frame: np.ndarray) -> None:
        height, width = (side // 2 * 2 for side in frame.shape[:2])  # the codec halves the colors' sides
        if not writers:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            writers.append(cv2.VideoWriter(str(aside), codec, rate, (width, height)))
            if not writers[0].isOpened():
                raise OSError(f"{path}: OpenCV cannot write an MP4 video here.")
        writers[0].write(np.ascontiguousarray(frame[:height, :width, ::-1]))

    try:
        yield write
        for writer in writers:
            writer.release()
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _open(path: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(int(path) if path.isdecimal() else path)


def _property(path: str, key: int) -> float:
    capture = _open(path)
    try:
        return capture.get(key) if capture.isOpened() else 0.0
    finally:
        capture.release()


@contextmanager
def _until_interrupted(live: bool) -> Iterator[Event]:
    """Something that is set by Ctrl-C, which else would lose what a camera has seen."""
    interrupted = Event()
    if not live:
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
