"""Text files in the encodings that people save them in, whatever the locale."""

import codecs
from pathlib import Path

from detectron2.utils.file_io import PathManager

ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by their byte order marks."""


def read_text(path: str | Path) -> str:
    """Return the text of a file in UTF-8, or in the encoding of its byte order mark, without the mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: the text is in another encoding.
    """
    with PathManager.open(str(path), "rb") as file:
        return decode_text(file.read(), path)


def decode_text(content: bytes, path: str | Path) -> str:
    """Return the text of a file's bytes, as :func:`read_text`; the path is for the error."""
    encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(
            f"{path}, line {line}: byte 0x{byte:02x} is not {encoding.removesuffix('-sig').upper()}. "
            "Save the file as UTF-8."
        ) from error
    if "\0" in text:  # ASCII in UTF-16 is valid UTF-8
        raise ValueError(f"{path} has zero bytes: no text, or UTF-16 without a mark. Save it as UTF-8.")
    return text
