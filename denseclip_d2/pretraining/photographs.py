"""Zero-shot evaluation of a CLIP on labeled photographs: classes of boxes, and labels of pixels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.structures import BoxMode
from open_clip import CLIP, CustomTextCLIP
from open_clip.transform import image_transform_v2
from PIL import Image
from torch import Tensor

from ..clip_models import get_clip_architecture
from ..data.image_io import read_image
from ..data.semantic import read_labels
from ..meta_arch.sliding_window import SlidingWindow
from ..visual import encoder_class
from .alignment import sentences_of
from .evaluation import preprocess_of

MIN_BOX = 48
"""The number of pixels that a box's shorter side has to be above."""
SHORTER_SIDES = 2
"""The shorter side of images with labels of pixels, in sides of the CLIP's images."""


class PhotographEvaluator:
    """What a CLIP knows of photographs that no part of it was trained on, by names alone."""

    def __init__(self, architecture: str, model: CLIP | CustomTextCLIP, tokenizer: Callable[..., Tensor]):
        """
        Args:
            architecture: open_clip's name of the model, or ``local-dir:`` and a folder.
            model, tokenizer: open_clip's.
        """
        self._model, self._tokenizer = model.eval(), tokenizer
        self._preprocess = preprocess_of(model)
        shape = get_clip_architecture(architecture)
        kind = encoder_class(shape)
        self._visual = kind(**kind.arguments_of(shape), **kind.local_cells, norm="BN").eval()
        self._visual.load_state_dict(model.visual.state_dict())

    @torch.no_grad()
    def classify_boxes(self, records: Iterable[dict], names: Sequence[str]) -> dict[str, float]:
        """Give each box the class of ``names`` that is nearest to the embedding of the square around the box.

        Boxes whose shorter side has at most :data:`MIN_BOX` pixels and crowds are left out.

        Args:
            records: Detectron2's dicts with annotations.

        Returns: ``boxes`` and ``classes``, their numbers; ``class_accuracy``, the percentage of right boxes
            of a class, in the mean over the classes; ``box_accuracy``, the percentage of right boxes.
        Raises:
            ValueError: no box is large enough.
        """
        text = self._text(names)
        right: dict[int, list[bool]] = {}
        for record in records:
            image = Image.fromarray(read_image(record["file_name"], "RGB"))
            for annotation in record["annotations"]:
                box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                if annotation.get("iscrowd") or min(box[2] - box[0], box[3] - box[1]) <= MIN_BOX:
                    continue
                found = (self._embed(_square_around(image, box)) @ text.T).argmax()
                category = annotation["category_id"]
                right.setdefault(category, []).append(int(found) == category)
        if not right:
            raise ValueError(f"No box has a shorter side above {MIN_BOX} pixels.")
        shares = [sum(found) / len(found) for found in right.values()]
        every = [hit for found in right.values() for hit in found]
        return {
            "boxes": len(every),
            "classes": len(right),
            "class_accuracy": 100 * sum(shares) / len(shares),
            "box_accuracy": 100 * sum(every) / len(every),
        }

    @torch.no_grad()
    def label_pixels(
        self, records: Iterable[dict], names: Sequence[str], denoise: float = 0.0
    ) -> dict[str, float]:
        """Give each pixel the name of the highest score in the score map, interpolated bilinearly.

        Args:
            records: with ``file_name`` and ``sem_seg_file_name``. Labels that are no name are left out.
            denoise: leave out names whose probability is below this in all cells of an image, as MaskCLIP's
                prompt denoising does. The model's temperature makes the probabilities.

        Returns: ``images`` and ``names``, the numbers of images and of names with a pixel; ``mIoU`` of these
            names, in percent.
        Raises:
            ValueError: no pixel has a label.
        """
        text, number, images = self._text(names), len(names), 0
        counts = torch.zeros(number, number)
        for record in records:
            labels = torch.from_numpy(read_labels(record["sem_seg_file_name"])).long()
            scores = self._score_map(Image.fromarray(read_image(record["file_name"], "RGB")), text)
            if denoise:
                likely = (scores * self._model.logit_scale.exp()).softmax(dim=0).amax(dim=(1, 2))
                scores[likely < likely.max().clamp(max=denoise)] = -1
            found = F.interpolate(scores[None], labels.shape, mode="bilinear")[0].argmax(dim=0)
            counted = labels < number
            pairs = labels[counted] * number + found[counted]
            counts += pairs.bincount(minlength=number**2).reshape(number, number)
            images += 1
        present, hits = counts.sum(dim=1) > 0, counts.diag()
        if not present.any():
            raise ValueError("No pixel has a label.")
        iou = hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits).clamp(min=1)
        return {"images": images, "names": int(present.sum()), "mIoU": 100 * iou[present].mean().item()}

    def _text(self, names: Sequence[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(sentences_of(names)), normalize=True)

    def _pixels(self, image: Image.Image, size: int | tuple[int, int]) -> Tensor:
        settings = replace(self._preprocess, size=size, resize_mode="squash")
        return image_transform_v2(settings, is_train=False)(image)[None]

    def _embed(self, image: Image.Image) -> Tensor:
        """Return (1, C), of unit length."""
        return self._model.encode_image(self._pixels(image, self._preprocess.size), normalize=True)

    def _score_map(self, image: Image.Image, text: Tensor) -> Tensor:
        """Return (K, H, W) cosines, averaged over windows of the size that the CLIP was trained on."""
        size = self._preprocess.size
        scale = SHORTER_SIDES * size / min(image.size)
        pixels = self._pixels(image, (round(image.height * scale), round(image.width * scale)))[0]
        window = SlidingWindow((size, size), (size // 2, size // 2), max_pixels=8 * size**2)

        def segment(windows: list[Tensor]) -> list[Tensor]:
            cells = F.normalize(self._visual(torch.stack(windows))["dense_embedding"], dim=1)
            scores = torch.einsum("bchw,kc->bkhw", cells, text)
            return [*F.interpolate(scores, windows[0].shape[1:], mode="bilinear")]

        return window.average(segment, pixels)


def _square_around(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Return the square with the center and the longer side of a box, without what is outside the image."""
    x, y, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, max(box[2] - box[0], box[3] - box[1]) / 2
    left, top, right, bottom = map(round, (x - half, y - half, x + half, y + half))
    corners = max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)
    return image.crop(corners)
