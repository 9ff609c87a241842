import re

from detectron2.utils.file_io import PathManager
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..checkpoint.path_handler import ResolvedPaths

PREFIX = "hf://"
_PATH = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def resolve_hub_path(path: str) -> str:
    """A local file for ``hf://owner/repo/file`` or ``hf://owner/repo@revision/file``.

    It comes from huggingface_hub's cache or is downloaded into it; of a file in the cache the hub is asked
    for a newer one, and need not answer.

    Raises:
        ValueError: the path is none of that kind.
        FileNotFoundError: there is no such repository, revision or file, or not for everyone; the file is not
            in the cache and cannot be downloaded.
    """
    parts = _PATH.fullmatch(path)
    if not parts:
        raise ValueError(f"{path!r} is not hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE.")
    repo, revision, file = parts.groups()
    try:
        return hf_hub_download(repo, file, revision=revision)
    except Exception as error:  # besides the hub's, those of the HTTP library, which is not always the same
        reason = _reason(error, repo, revision, file)
        raise FileNotFoundError(f"{path}: {reason}") from error


def _reason(error: Exception, repo: str, revision: str | None, file: str) -> str:
    """What went wrong, and the way out; some errors are kinds of those asked for after them."""
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"it is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be reached "
            f"({error.__cause__ or error}). Fetch it where there is a network (`hf download {repo} {file}`), "
            "copy it here, and give its path."
        )
    if isinstance(error, GatedRepoError):
        return f"{repo} asks for its terms to be accepted. Do so on its page, then `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no {repo}, or it is private. For one that is yours, `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}."
    if isinstance(error, EntryNotFoundError):
        return f"{repo} has no file {file!r}{f' in {revision!r}' if revision else ''}."
    return f"it could not be downloaded: {error}. Try again, which goes on where it broke off."


PathManager.register_handler(ResolvedPaths(PREFIX, resolve_hub_path))
