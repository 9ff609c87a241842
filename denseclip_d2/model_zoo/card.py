"""The model card: the page of a model on a hub."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from huggingface_hub import EvalResult, ModelCardData
from tabulate import tabulate

from ..config.header import portable
from ..data.tasks import has_sem_seg_head
from ..utils.atomic import atomic_write

METRIC = re.compile(r".*/(AP\w*|mIoU|fwIoU|mACC|pACC|PQ\w*|SQ\w*|RQ\w*)")
"""Names of metrics of a whole test set, not of a single class."""
_CARD = """---
{data}
---

# {name}

{system} of denseclip_d2, [DenseCLIP](https://arxiv.org/abs/2112.01518) for Detectron2, on {encoder}:
{task} of {num_classes} classes. The file holds its own config.

```sh
tools/demo.py --config-file hf://OWNER/REPO/{file} --input photo.jpg --output images
```

```python
from denseclip_d2 import Predictor

outputs = Predictor.from_files("hf://OWNER/REPO/{file}")("photo.jpg")
```

## Figures

{scores}

## Classes

{classes}

## Config

<details><summary>{file} has it in its header</summary>

```yaml
{config}```

</details>

## License

These weights: {license}. The pretrained weights that training started from, and the training data
({data_sets}), have their own terms.
"""
_JOINED_CARD = """---
{data}
---

# {name}

A CLIP that denseclip_d2's `tools/make_clip.py` made of an image classifier, timm's `{classifier}`,
and a sentence encoder, `{encoder}`. The projection of the text encoder maps the sentence of a class to
the classifier's weights of the class. The CLIP knows names that are near those of the classifier's classes.

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```

`open_clip_config.json` names this folder. If the folder moves, change `hf_model_name` there.

## Licenses

The weights are those of both parts, under their licenses. The data of their training have their own terms.

{texts}
"""


def model_card(
    cfg: CfgNode,
    class_names: Sequence[str],
    scores: Mapping[str, float],
    *,
    file: str,
    license: str,
    with_masks: bool = False,
    half: bool = False,
) -> str:
    """Return a model's README.md for a hub, with the metadata that hubs read.

    Args:
        cfg: the model's config.
        scores: the metrics of an evaluation; empty if there was none.
        file: name of the exported weights.
        license: the hub's identifier, such as "apache-2.0".
        with_masks: whether the model predicts masks.
        half: whether the weights were rounded to float16 after the evaluation.
    """
    name, test_set = Path(file).stem, ", ".join(cfg.DATASETS.TEST) or "unnamed"
    task = "image-segmentation" if with_masks or has_sem_seg_head(cfg) else "object-detection"
    results = [EvalResult(task, test_set, test_set, metric, value) for metric, value in scores.items()]
    data = ModelCardData(
        license=license, library_name="denseclip_d2", pipeline_tag=task, tags=["denseclip", "detectron2"],
        model_name=name, eval_results=results or None,
    )  # fmt: skip
    table = tabulate(scores.items(), headers=("metric", "value"), tablefmt="github", floatfmt=".2f")
    rounded = ", before the weights were rounded to float16" if half else ""
    return _CARD.format(
        data=data, name=name, system=cfg.MODEL.META_ARCHITECTURE,
        encoder=cfg.MODEL.DENSECLIP.VISUAL.BACKBONE or cfg.MODEL.DENSECLIP.CLIP_MODEL,
        task=task.replace("-", " "), num_classes=len(class_names), file=file,
        scores=f"Of {test_set}{rounded}.\n\n{table}" if scores else "Not evaluated.",
        classes=", ".join(class_names) + ".", config=portable(cfg, class_names).dump(), license=license,
        data_sets=", ".join(cfg.DATASETS.TRAIN) or "unnamed",
    )  # fmt: skip


def find_metrics(metrics: str | None, weights: str) -> dict[str, float]:
    """Return the last metrics of a whole test set in a training's metrics.json.

    Args:
        metrics: the file. None takes the file beside a ``model_final.pth``, but not beside an earlier
            checkpoint, whose metrics are not the last ones.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a training's.
    """
    path = Path(metrics or Path(weights).with_name("metrics.json"))
    if not metrics and not (Path(weights).name == "model_final.pth" and path.is_file()):
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"--metrics {path} does not exist.")
    scores: dict[str, float] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            scores.update({k: value for k, value in json.loads(line).items() if METRIC.fullmatch(k)})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"--metrics {path} is not a metrics.json of a training: {error}.") from error
    return {name: round(value, 2) for name, value in scores.items() if math.isfinite(value)}


def check_card(folder: Path) -> None:
    """
    Raises:
        FileExistsError: the folder has a README.md already.
    """
    if (path := folder / "README.md").exists():
        raise FileExistsError(f"--model-card: {path} exists. Choose another folder.")


def write_card(folder: Path, text: str) -> None:
    """Write a card as the folder's README.md."""
    with atomic_write(folder / "README.md", "w", encoding="utf-8") as file:
        file.write(text)


def joined_clip_card(name: str, classifier: str, sentence_encoder: str, licenses: Sequence[str]) -> str:
    """Return the README.md of a CLIP that is made of two models.

    Args:
        classifier: timm's name of the image classifier.
        sentence_encoder: the name of the sentence encoder.
        licenses: the text of each part's license.
    """
    data = ModelCardData(
        license="other", library_name="open_clip", pipeline_tag="zero-shot-image-classification",
        tags=["clip", "denseclip"], model_name=name,
    )  # fmt: skip
    texts = "\n\n".join(f"~~~~\n{text.strip()}\n~~~~" for text in licenses)
    return _JOINED_CARD.format(
        data=data, name=name, classifier=classifier, encoder=sentence_encoder, texts=texts
    )
