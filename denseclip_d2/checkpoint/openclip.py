import open_clip
from detectron2.utils.file_io import PathManager
from open_clip.pretrained import download_pretrained, get_pretrained_cfg

from ..clip_models import OPENCLIP as PREFIX
from .path_handler import ResolvedPathHandler


def parse_openclip_path(path: str) -> tuple[str, str, dict]:
    """Split ``openclip://<architecture>/<tag>``.

    Returns: architecture, tag, and open_clip's entry for them (``url``, ``hf_hub``, ``quick_gelu``...).
    Raises:
        ValueError: open_clip has no such weights.
    """
    architecture, _, tag = path.removeprefix(PREFIX).partition("/")
    entry = get_pretrained_cfg(architecture, tag)
    if not entry:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise ValueError(
            f"MODEL.WEIGHTS = {path!r}: open_clip has no weights {tag!r} for {architecture!r}. "
            f"It has: {', '.join(tags) or 'none; see open_clip.list_pretrained()'}."
        )
    return architecture, tag, entry


def resolve_openclip_path(path: str) -> str:
    """Return a local file for ``openclip://<architecture>/<tag>``, from open_clip's cache or downloaded.

    Raises:
        ValueError: open_clip has no such weights.
        FileNotFoundError: the weights are not in the cache and cannot be downloaded.
    """
    architecture, tag, entry = parse_openclip_path(path)
    try:
        return download_pretrained(entry)
    except OSError as error:  # raised by urllib and the hub's client without a network
        raise FileNotFoundError(
            f"MODEL.WEIGHTS = {path!r} is not in open_clip's cache and could not be downloaded ({error}). "
            f"With a network, `open_clip.create_model({architecture!r}, pretrained={tag!r})` fetches "
            "it; copy the file here and set MODEL.WEIGHTS to its path, or to '' to train from random weights."
        ) from error


PathManager.register_handler(ResolvedPathHandler(PREFIX, resolve_openclip_path))
