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

from ..checkpoint.path_handler import ResolvedPathHandler

HUB_PREFIX = "hf://"
_PATH = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def resolve_hub_path(path: str) -> str:
    """Return the local file of ``hf://owner/repo/file`` or ``hf://owner/repo@revision/file``.

    huggingface_hub downloads the file into its cache, or finds it there. Without a network, the cached file
    is used.

    Raises:
        ValueError: the path has another form.
        FileNotFoundError: the repository, revision or file does not exist or is private, or the file is not
            in the cache and cannot be downloaded.
    """
    parts = _PATH.fullmatch(path)
    if not parts:
        raise ValueError(f"{path!r} is not hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE.")
    repo, revision, file = parts.groups()
    try:
        return hf_hub_download(repo, file, revision=revision)
    except Exception as error:  # the HTTP library's errors too, and that library is not always the same
        reason = _reason(error, repo, revision, file)
        raise FileNotFoundError(f"{path}: {reason}") from error


def _reason(error: Exception, repo: str, revision: str | None, file: str) -> str:
    """Return what went wrong and what to do. Subclasses of errors are checked before their bases."""
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"the file is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be reached "
            f"({error.__cause__ or error}). Where there is a network, run "
            f"`hf download {repo} {file}`. Copy the file here, and use its path."
        )
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated. Accept the terms on its page, then run `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo} does not exist, or is private. If it is yours, run `hf auth login` or set HF_TOKEN."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}."
    if isinstance(error, EntryNotFoundError):
        return f"{repo} has no file {file!r}{f' in {revision!r}' if revision else ''}."
    return f"the download failed: {error}. Try again; the download resumes."


PathManager.register_handler(ResolvedPathHandler(HUB_PREFIX, resolve_hub_path))
