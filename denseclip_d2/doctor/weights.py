from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants, try_to_load_from_cache
from open_clip.constants import HF_WEIGHTS_NAME
from open_clip.pretrained import _get_safe_alternatives, get_pretrained_cfg

from ..model_zoo.zoo import zoo_index
from ..utils.safetensors_file import sha256
from .check_result import CheckResult, judge

CLIPS = (("RN50-quickgelu", "openai"), ("RN101-quickgelu", "openai"), ("ViT-B-16-quickgelu", "openai"))
"""Pretrained weights of the paper's configs."""
_TIMEOUT = 5  # seconds


def check_zoo() -> CheckResult:
    """Check the weights in the package."""
    broken = [entry.file for entry in zoo_index().values() if not entry.is_intact()]
    text = f"missing or changed: {', '.join(broken)}" if broken else "all weights are whole"
    fix = "Restore them: `git checkout denseclip_d2/model_zoo/weights`, or install the package again."
    return judge("model zoo", not broken, text, "wrong", fix)


def check_clip_weights() -> CheckResult:
    """Check which CLIPs of the configs are whole in open_clip's caches."""
    missing = []
    for architecture, tag in CLIPS:
        entry = get_pretrained_cfg(architecture, tag)
        if not (_in_hub_cache(entry) or _in_clip_cache(entry)):
            missing.append(f"openclip://{architecture}/{tag}")
    where = f"in {constants.HF_HUB_CACHE} and ~/.cache/clip"
    return judge(
        "CLIP", not missing, f"not {where}: {', '.join(missing)}" if missing else f"{len(CLIPS)} {where}",
        "note", "Training downloads them. Without a network, copy the file here, and set MODEL.WEIGHTS.",
    )  # fmt: skip


def check_network() -> CheckResult:
    """Check whether the hub of CLIP's weights and of hf:// paths answers."""
    url, fault = constants.ENDPOINT, ""
    if constants.HF_HUB_OFFLINE:
        fault = "HF_HUB_OFFLINE is set: nothing is downloaded"
    else:
        try:
            urlopen(Request(url, method="HEAD"), timeout=_TIMEOUT).close()
        except HTTPError:
            pass  # an error is an answer
        except (OSError, ValueError) as error:
            fault = f"{url} cannot be reached: {error}"
    fix = "Without it, weights must be in the caches or given by their paths. A proxy: HTTPS_PROXY."
    return judge("hub", not fault, fault or f"{url} can be reached", "note", fix)


def _in_hub_cache(entry: dict) -> bool:
    repo, _, file = entry["hf_hub"].rpartition("/")
    names = [file or HF_WEIGHTS_NAME]
    names += _get_safe_alternatives(names[0])
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)


def _in_clip_cache(entry: dict) -> bool:
    """Return whether OpenAI's file is there; its address has its sha256."""
    *_, digest, name = entry["url"].split("/")
    path = Path("~/.cache/clip", name).expanduser()
    return path.is_file() and sha256(str(path)) == digest
