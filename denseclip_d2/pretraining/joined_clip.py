"""A CLIP that is made of an image classifier and a sentence encoder."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip import CustomTextCLIP
from torch import Tensor, nn

from ..checkpoint.imagenet_weights import in_timms_order
from ..checkpoint.load_report import first
from ..checkpoint.readers import read_weights
from ..utils.safetensors_file import write_safetensors
from .alignment import TEMPLATE, fit_projection

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
TEMPERATURE = 0.05
"""The temperature of the cosines: docs/photographs.md has what others bring."""
CONTEXT_LENGTH = 77
_BATCH = 64
_LEFT_BEHIND = {".md", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack"}


@dataclass(frozen=True)
class ImageClassifier:
    """A timm model with its classifier.

    Attributes:
        name: timm's.
        model: in evaluation mode.
        rows: (K, C), the weights of the classifier.
    """

    name: str
    model: Any
    rows: Tensor

    @classmethod
    def from_file(cls, name: str, path: str, num_classes: int) -> "ImageClassifier":
        """Read a classifier.

        Args:
            path: weights of timm, or of EfficientNet's first port to PyTorch.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: timm has no such model; the file is damaged, or of another model or number of classes.
        """
        if not timm.is_model(name):
            raise ValueError(f"--classifier {name!r}: timm has no such model. timm.list_models() has all.")
        model: Any = timm.create_model(name, num_classes=num_classes).eval()
        own = model.state_dict()
        weights = read_weights(path, lambda found: len(in_timms_order(found, own).keys() & own.keys()))
        found = in_timms_order(weights["model"], own)
        wrong = [n for n, tensor in own.items() if n not in found or found[n].shape != tensor.shape]
        if wrong:
            raise ValueError(
                f"{path!r} does not hold timm's {name!r} with {num_classes} classes: {first(wrong)} are "
                "missing or have another shape. Check --classifier and --classes."
            )
        model.load_state_dict({n: found[n] for n in own})
        classifier = model.get_classifier()
        if not isinstance(getattr(classifier, "weight", None), Tensor):
            raise ValueError(f"timm's {name!r} has no classifier of one layer.")
        return cls(name, model, classifier.weight.detach().flatten(1))


def architecture_config(classifier: ImageClassifier, sentence_encoder: str, **text: Any) -> dict:
    """Return open_clip's config of the CLIP.

    Args:
        sentence_encoder: the folder of the config, the tokenizer and, perhaps, the weights.
        text: more of open_clip's ``text_cfg``.
    """
    pool = getattr(classifier.model, "global_pool", None)  # a ViT's is a word
    return {
        "embed_dim": classifier.rows.shape[1],
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": classifier.name, "timm_model_pretrained": False,
            "timm_pool": pool if isinstance(pool, str) else "avg", "timm_proj": "none",
            "image_size": classifier.model.pretrained_cfg["input_size"][-1],
        },
        "text_cfg": {
            "hf_model_name": sentence_encoder, "hf_tokenizer_name": sentence_encoder,
            "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp", "context_length": CONTEXT_LENGTH, **text,
        },
    }  # fmt: skip


def preprocess_config(classifier: ImageClassifier) -> dict:
    """Return open_clip's config of the images that the classifier was trained on."""
    settings = classifier.model.pretrained_cfg
    return {key: settings[key] for key in ("mean", "std", "interpolation")} | {"resize_mode": "shortest"}


def join(classifier: ImageClassifier, sentence_encoder: Path, names: Sequence[str]) -> CustomTextCLIP:
    """Return the CLIP of a classifier and a sentence encoder.

    The image encoder is the classifier without its last layer. The text encoder is the sentence encoder, the
    mean of its last hidden states, and a projection onto the classifier's rows (:func:`fit_projection`).

    Args:
        sentence_encoder: a folder with a model and tokenizer of Hugging Face.
        names: of the classifier's classes, in the order of its rows.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: the folder lacks the config.
    """
    folder = str(sentence_encoder)
    if not (sentence_encoder / "config.json").is_file():
        raise FileNotFoundError(f"--sentence-encoder {folder}: there is no {folder}/config.json.")
    config = architecture_config(classifier, folder)
    try:
        model = CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
    except RuntimeError as error:
        raise ImportError(f"{error} A sentence encoder needs it: pip install transformers.") from error
    tokenizer = open_clip.tokenizer.HFTokenizer(folder, CONTEXT_LENGTH, local_files_only=True)
    model.visual.trunk.load_state_dict(
        {n: t for n, t in classifier.model.state_dict().items() if n in model.visual.trunk.state_dict()}
    )
    projection, model.text.proj = model.text.proj, nn.Identity()
    with torch.no_grad():
        parts = tokenizer([TEMPLATE.format(name) for name in names]).split(_BATCH)
        pad_id = model.text.config.pad_token_id
        sentences = torch.cat([model.encode_text(trimmed(ids, pad_id)) for ids in parts])
        first_layer, second_layer = fit_projection(sentences, classifier.rows)
        projection[0].weight.copy_(first_layer)
        projection[2].weight.copy_(second_layer)
        model.text.proj = projection
        model.logit_scale.fill_(math.log(1 / TEMPERATURE))
    return model


def trimmed(ids: Tensor, pad_id: int) -> Tensor:
    """Return token ids (N, L) without the columns that are padding alone."""
    return ids[:, : int((ids != pad_id).sum(dim=1).max())]


def write_clip(
    model: CustomTextCLIP, classifier: ImageClassifier, sentence_encoder: Path, folder: Path, final: Path
) -> None:
    """Write a CLIP as a folder that ``open_clip.create_model("local-dir:FOLDER")`` loads.

    Args:
        folder: to write to.
        final: where the folder will be. The config names it, because the text encoder's config is there.
    """
    for file in sentence_encoder.iterdir():
        if file.is_file() and file.suffix not in _LEFT_BEHIND and not file.name.startswith("."):
            shutil.copy(file, folder)
    config = architecture_config(classifier, str(final), hf_model_pretrained=False)
    content = {"model_cfg": config, "preprocess_cfg": preprocess_config(classifier)}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / WEIGHTS_FILE, model.state_dict())
