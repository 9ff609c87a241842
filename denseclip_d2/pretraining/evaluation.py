"""What a CLIP knows of the generated shapes, none of which it was given a label for."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from PIL import Image
from torch import Tensor

from ..clip_models import get_clip_architecture
from ..data.captions import with_article
from ..data.shapes_scene import render, sample_background, sample_instances
from ..data.shapes_worlds import SHAPES, World
from ..visual import CLIPResNet, CLIPViT, encoder_class

SIDE = 64
_BATCH = 20


class ZeroShotEvaluator:
    """Retrieval and zero-shot dense accuracy of a CLIP on pictures generated once, from a seed.

    A picture's caption names all of its objects. Embeddings of cells are values, without the last attention
    (MaskCLIP, Zhou et al., ECCV 2022), brought to the picture's size.
    """

    def __init__(
        self,
        architecture: str,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[Sequence[str]], Tensor],
        *,
        num_images: int,
        seed: int,
        world: World = SHAPES,
    ):
        """
        Args:
            architecture: open_clip's name of the models that will come.
            preprocess, tokenizer: open_clip's for it.

        Raises:
            ValueError: no images; see :func:`check_architecture`.
        """
        if num_images < 1:
            raise ValueError(f"{num_images} images to evaluate on: at least one is needed.")
        kind, arguments = check_architecture(architecture)
        pyramid = {"out_features": ()} if kind is CLIPViT else {}
        self._visual = kind(**arguments, **pyramid, dense="value", norm="BN").eval()
        pictures = [_labelled_picture(np.random.default_rng([seed, i]), world) for i in range(num_images)]
        self._images, self._labels, self._captions = zip(*pictures, strict=True)
        self._names = tokenizer([with_article(name) for name in world.class_names])
        self._texts = tokenizer(self._captions)
        self._preprocess = preprocess

    def __call__(self, model: CLIP) -> dict[str, float]:
        """
        Args:
            model: in any mode, which is kept.

        Returns: ``images``, how many; ``dense_accuracy``, the part of the objects' pixels whose class has the
            greatest cosine; ``image_to_text_r1`` and ``text_to_image_r1``, the part whose best match has its
            caption.
        """
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        self._visual.to(device).load_state_dict(model.visual.state_dict())
        images, right, total = [], 0, 0
        with torch.no_grad():
            names, texts = (
                model.encode_text(ids.to(device), normalize=True) for ids in (self._names, self._texts)
            )
            for start in range(0, len(self._images), _BATCH):
                batch = slice(start, start + _BATCH)
                pixels = torch.stack([self._preprocess(image) for image in self._images[batch]]).to(device)
                images.append(model.encode_image(pixels, normalize=True))
                labels = torch.stack(self._labels[batch])
                right += int((self._classes(pixels, names) == labels).sum())
                total += int((labels >= 0).sum())
        model.train(was_training)
        return {
            "images": len(self._images),
            "dense_accuracy": right / max(total, 1),
            **retrieval_at_1(torch.cat(images), texts, self._captions),
        }

    def _classes(self, pixels: Tensor, names: Tensor) -> Tensor:
        """The class of each of the picture's pixels, (B, SIDE, SIDE), on the CPU."""
        cells = F.normalize(self._visual(pixels)["dense_embedding"], dim=1)
        scores = torch.einsum("bchw,kc->bkhw", cells, names)
        return F.interpolate(scores, (SIDE, SIDE), mode="bilinear").argmax(dim=1).cpu()


def check_architecture(name: str) -> tuple[type[CLIPResNet] | type[CLIPViT], dict]:
    """The class of an architecture's visual encoder, and what it is made by.

    Raises:
        ValueError: open_clip has none of this name, or DenseCLIP cannot take it.
    """
    architecture = get_clip_architecture(name, "--model")
    kind = encoder_class(architecture)
    return kind, kind.arguments_of(architecture)


def retrieval_at_1(images: Tensor, texts: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """How often the best match has the right caption, in both directions.

    Args:
        images, texts: (N, C), of unit length.
        captions: N, of which some may be equal.
    """
    ids = torch.tensor([captions.index(caption) for caption in captions])
    similarity = (images @ texts.T).cpu()
    return {
        "image_to_text_r1": (ids[similarity.argmax(dim=1)] == ids).float().mean().item(),
        "text_to_image_r1": (ids[similarity.argmax(dim=0)] == ids).float().mean().item(),
    }


def _labelled_picture(rng: np.random.Generator, world: World) -> tuple[Image.Image, Tensor, str]:
    """A picture, the class of each pixel, (SIDE, SIDE), -1 where there is no object, and its caption."""
    instances = sample_instances(rng, SIDE, SIDE, world)
    labels = torch.full((SIDE, SIDE), -1)
    for instance in instances:
        labels[torch.from_numpy(instance.mask)] = instance.category
    image = render(sample_background(rng, SIDE, SIDE), instances)
    names = [with_article(world.class_names[instance.category]) for instance in instances]
    return image, labels, " and ".join(names) or "nothing"
