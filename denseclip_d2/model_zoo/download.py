import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from ..utils.safetensors_file import sha256 as sha256_of

_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 18


def cache_dir() -> Path:
    """Where downloaded weights are kept: ``$DENSECLIP_D2_CACHE``, or ``~/.cache/denseclip_d2``."""
    return Path(os.environ.get("DENSECLIP_D2_CACHE", "~/.cache/denseclip_d2")).expanduser()


def download(url: str, path: Path, sha256: str) -> None:
    """Fetch a file, going on where an earlier try broke off; ``path`` is whole and right, or not there.

    Raises:
        FileNotFoundError: it cannot be fetched, or not to its end; what came is kept for the next try.
        ValueError: it is not the file that was published.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        _append(url, partial)
    except (OSError, HTTPException, ValueError) as error:
        raise FileNotFoundError(
            f"{path.name} is not here and could not be downloaded from {url!r} ({error}). Try again, which "
            f"goes on where it broke off, or fetch the file elsewhere and put it at {path}."
        ) from error
    try:
        verify(partial, sha256, url)
    except ValueError:
        partial.unlink()
        raise
    partial.replace(path)


def verify(path: Path, sha256: str, url: str) -> None:
    """See that a file is the one that was published.

    Args:
        url: where it is fetched from; empty for a file of this package.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is another.
    """
    way_out = "Remove it if it is there, and try again: it is fetched anew."
    if not url:
        way_out = "It comes with this package: install that again, or check it out again in a clone."
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. {way_out}")
    found = sha256_of(str(path))
    if found != sha256:
        raise ValueError(
            f"{path} is not the file that was published: its sha256 is {found}, not {sha256}. {way_out}"
        )


def _append(url: str, partial: Path) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if done and error.code == 416:  # nothing comes after what an earlier try left
            return
        raise
    if response.status != 206:  # the server sends all of it, whatever was asked for
        done = 0
    total = done + int(response.headers.get("Content-Length", 0))
    progress = tqdm(desc=partial.stem, initial=done, total=total or None, unit="B", unit_scale=True)
    with response, partial.open("ab" if done else "wb") as file, progress:
        while block := response.read(_BLOCK):
            file.write(block)
            progress.update(len(block))
    if partial.stat().st_size < total:
        raise ConnectionError(f"broke off at {partial.stat().st_size:,} of {total:,} bytes")
