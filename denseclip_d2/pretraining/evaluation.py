"""Zero-shot evaluation of a CLIP on generated shapes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP, get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from ..clip_models import get_clip_architecture
from ..shapes.captions import with_article
from ..shapes.scene import Instance, draw_scene
from ..shapes.vocabulary import SHAPES, Vocabulary
from ..visual import CLIPResNet, CLIPTimm, CLIPViT, encoder_class

# Side, in pixels, of images for retrieval (as in pretraining), and of images for dense accuracy (as in the
# datasets). Objects have the same size in both.
SIDE, LABELED_SIDE = 96, 128
_MAX_OBJECTS = 3  # in images for retrieval
_BATCH = 20


class ZeroShotEvaluator:
    """Retrieval and zero-shot dense accuracy of a CLIP on images generated once, from a seed.

    Retrieval matches small images of up to three objects with captions that name all objects. Dense accuracy
    classifies the pixels of images as in the datasets, by the cosines of the dense embedding, interpolated.
    The dense embedding is the values, without the last attention (MaskCLIP, Zhou et al., ECCV 2022), at
    stride 16 for ResNets.
    """

    def __init__(
        self,
        architecture: str,
        preprocess: PreprocessCfg,
        tokenizer: Callable[[Sequence[str]], Tensor],
        *,
        num_images: int,
        seed: int,
        vocabulary: Vocabulary = SHAPES,
    ):
        """
        Args:
            architecture: open_clip's name of the models to evaluate.
            preprocess, tokenizer: open_clip's for the architecture; the size of ``preprocess`` is an int.
            num_images: number of images of either kind.

        Raises:
            ValueError: no images; see :func:`check_architecture`.
        """
        if num_images < 1:
            raise ValueError(f"{num_images} images to evaluate on: at least one is needed.")
        kind, arguments = check_architecture(architecture)
        self._visual = kind(**arguments, **kind.local_cells, norm="BN").eval()
        names = [with_article(name) for name in vocabulary.class_names]
        small, labeled = [], []
        for i in range(num_images):
            rng = np.random.default_rng([seed, i, 0])
            instances, image = draw_scene(rng, SIDE, SIDE, vocabulary, _MAX_OBJECTS)
            small.append((image, " and ".join(names[x.category] for x in instances) or "nothing"))
            rng = np.random.default_rng([seed, i, 1])
            instances, image = draw_scene(rng, LABELED_SIDE, LABELED_SIDE, vocabulary)
            labeled.append((image, _labels(instances)))
        self._names = tokenizer(names)
        self._captions = [caption for _, caption in small]
        self._texts = tokenizer(self._captions)
        self._images = _pixels([image for image, _ in small], preprocess)
        self._labels = torch.stack([labels for _, labels in labeled])
        self._labeled = _pixels([image for image, _ in labeled], preprocess)

    def __call__(self, model: CLIP) -> dict[str, float]:
        """
        Args:
            model: in training or evaluation mode, which does not change.

        Returns: ``images``, their number; ``dense_accuracy``, the share of the objects' pixels whose class
            has the highest cosine; ``image_to_text_r1`` and ``text_to_image_r1``, the share of best matches
            with the right caption.
        """
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        self._visual.to(device).load_state_dict(model.visual.state_dict())
        with torch.no_grad():
            names, texts = (
                model.encode_text(ids.to(device), normalize=True) for ids in (self._names, self._texts)
            )
            images = torch.cat(
                [model.encode_image(x.to(device), normalize=True) for x in self._images.split(_BATCH)]
            )
            found = torch.cat([self._classes(x.to(device), names) for x in self._labeled.split(_BATCH)])
        model.train(was_training)
        objects = self._labels >= 0
        return {
            "images": len(self._images),
            "dense_accuracy": (found == self._labels)[objects].float().mean().item(),
            **retrieval_at_1(images, texts, self._captions),
        }

    def _classes(self, pixels: Tensor, names: Tensor) -> Tensor:
        """Return the class of each pixel, (B, LABELED_SIDE, LABELED_SIDE), on the CPU."""
        cells = F.normalize(self._visual(pixels)["dense_embedding"], dim=1)
        scores = torch.einsum("bchw,kc->bkhw", cells, names)
        return F.interpolate(scores, (LABELED_SIDE, LABELED_SIDE), mode="bilinear").argmax(dim=1).cpu()


def check_architecture(name: str) -> tuple[type[CLIPResNet] | type[CLIPViT] | type[CLIPTimm], dict]:
    """Return the class of an architecture's visual encoder, and its arguments.

    Raises:
        ValueError: open_clip has no such architecture, DenseCLIP does not support it, or its text encoder
            is one of Hugging Face.
    """
    architecture = get_clip_architecture(name, "--model")
    if architecture.text.hf_model_name:
        raise ValueError(
            f"--model = {name!r} has a text encoder of Hugging Face ({architecture.text.hf_model_name}), "
            "which is not trained here. Choose an architecture such as 'ViT-B-16-quickgelu', or train this "
            "one by open_clip's own trainer: python -m open_clip_train.main."
        )
    kind = encoder_class(architecture)
    return kind, kind.arguments_of(architecture)


def preprocess_of(model: CLIP) -> PreprocessCfg:
    """Return the preprocessing of a model's images, which are square."""
    settings = get_model_preprocess_cfg(model)
    size = settings["size"]
    return PreprocessCfg(**{**settings, "size": size if isinstance(size, int) else size[0]})


def retrieval_at_1(images: Tensor, texts: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return how often the best match has the right caption, in both directions.

    Args:
        images, texts: (N, C), of unit length.
        captions: N; some can be equal.
    """
    ids = torch.tensor([captions.index(caption) for caption in captions])
    similarity = (images @ texts.T).cpu()
    return {
        "image_to_text_r1": (ids[similarity.argmax(dim=1)] == ids).float().mean().item(),
        "text_to_image_r1": (ids[similarity.argmax(dim=0)] == ids).float().mean().item(),
    }


def _labels(instances: Sequence[Instance]) -> Tensor:
    """Return the class of each pixel, (LABELED_SIDE, LABELED_SIDE), -1 outside of objects."""
    labels = torch.full((LABELED_SIDE, LABELED_SIDE), -1)
    for instance in instances:
        labels[torch.from_numpy(instance.mask)] = instance.category
    return labels


def _pixels(images: Sequence[Image.Image], preprocess: PreprocessCfg) -> Tensor:
    """Return images as a model takes them, (N, 3, H, W); SIDE pixels become the model's size."""
    size = round(preprocess.size * images[0].width / SIDE)
    transform = image_transform_v2(replace(preprocess, size=size), is_train=False)
    return torch.stack([transform(image) for image in images])
