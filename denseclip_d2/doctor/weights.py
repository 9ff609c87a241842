from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants, try_to_load_from_cache
from open_clip.constants import HF_WEIGHTS_NAME
from open_clip.pretrained import _get_safe_alternatives, get_pretrained_cfg

from ..model_zoo.zoo import packaged_files
from ..utils.safetensors_file import sha256
from .finding import Finding

CLIPS = (("RN50-quickgelu", "openai"), ("RN101-quickgelu", "openai"), ("ViT-B-16-quickgelu", "openai"))
"""What the configs of the paper begin from."""
_TIMEOUT = 5  # seconds


def look_at_zoo() -> Finding:
    """The weights that come with the package."""
    broken = [
        path.name for path, digest in packaged_files() if not path.is_file() or sha256(str(path)) != digest
    ]
    if broken:
        text = f"missing or not as published: {', '.join(broken)}"
        return Finding(
            "model zoo", "wrong", text, "Get them again: `git checkout denseclip_d2/model_zoo/weights`."
        )
    return Finding("model zoo", "ok", "the weights of the package are whole")


def look_at_clip() -> Finding:
    """Which of the CLIPs that configs begin from are in open_clip's cache, whole."""
    missing = []
    for architecture, tag in CLIPS:
        entry = get_pretrained_cfg(architecture, tag)
        if not (_in_hub_cache(entry) or _in_clip_cache(entry)):
            missing.append(f"openclip://{architecture}/{tag}")
    where = f"{constants.HF_HUB_CACHE} and ~/.cache/clip"
    if missing:
        return Finding(
            "CLIP", "note", f"not in {where}: {', '.join(missing)}",
            "Training fetches what it begins from. Without a network, fetch it elsewhere, copy the file, and "
            "set MODEL.WEIGHTS to its path.",
        )  # fmt: skip
    return Finding("CLIP", "ok", f"{len(CLIPS)} of {len(CLIPS)} in {where}")


def look_at_network() -> Finding:
    """Whether the hub answers that CLIP's weights, and hf:// ones, come from."""
    url = constants.ENDPOINT
    way_out = "Without it, weights have to be in the caches, or given by their paths."
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: nothing is fetched", way_out)
    try:
        urlopen(Request(url, method="HEAD"), timeout=_TIMEOUT).close()
    except HTTPError:
        pass  # it has answered
    except (OSError, ValueError) as error:
        return Finding("hub", "note", f"{url} cannot be reached: {error}", f"{way_out} Proxies: HTTPS_PROXY.")
    return Finding("hub", "ok", f"{url} can be reached")


def _in_hub_cache(entry: dict) -> bool:
    repo, _, file = entry["hf_hub"].rpartition("/")
    names = [file or HF_WEIGHTS_NAME]
    names += _get_safe_alternatives(names[0])
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)


def _in_clip_cache(entry: dict) -> bool:
    """Whether OpenAI's file is there, which has its sha256 in its address."""
    *_, digest, name = entry["url"].split("/")
    path = Path("~/.cache/clip", name).expanduser()
    return path.is_file() and sha256(str(path)) == digest
