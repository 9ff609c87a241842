"""What a CLIP knows of the generated shapes, none of which it was given a label for."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from PIL import Image
from torch import Tensor

from ..clip_models import get_clip_architecture
from ..data.shapes_scene import render, sample_background, sample_instances
from ..data.shapes_worlds import SHAPES, World
from ..visual import CLIPViT
from ..visual.clip_resnet import CLIPResNet

SIDE = 128
_BATCH = 20


def evaluate(
    model: CLIP,
    architecture: str,
    preprocess: Callable[[Image.Image], Tensor],
    tokenizer: Callable[[Sequence[str]], Tensor],
    *,
    num_images: int,
    seed: int,
    world: World = SHAPES,
) -> dict[str, float]:
    """Retrieval and zero-shot dense accuracy on pictures generated from ``seed``.

    A picture's caption names all of its objects. Embeddings of cells are values, without the last attention
    (MaskCLIP, Zhou et al., ECCV 2022), brought to the picture's size.

    Args:
        model: in any mode, which is kept.
        architecture: open_clip's name of it.
        preprocess, tokenizer: open_clip's for it.

    Returns: ``images``; ``dense_accuracy``, the part of the objects' pixels whose class has the greatest
        cosine; ``image_to_text_r1`` and ``text_to_image_r1``, the part whose best match has its caption.
    Raises:
        ValueError: no images.
    """
    if num_images < 1:
        raise ValueError(f"{num_images} images to evaluate on: at least one is needed.")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    visual = _dense_visual(model, architecture).to(device)
    pictures = [_labelled_picture(np.random.default_rng([seed, i]), world) for i in range(num_images)]
    images, captions, right, total = [], [caption for _, _, caption in pictures], 0, 0
    with torch.no_grad():
        names = model.encode_text(tokenizer([f"a {n}" for n in world.class_names]).to(device), normalize=True)
        texts = model.encode_text(tokenizer(captions).to(device), normalize=True)
        for start in range(0, num_images, _BATCH):
            batch = pictures[start : start + _BATCH]
            pixels = torch.stack([preprocess(image) for image, _, _ in batch]).to(device)
            images.append(model.encode_image(pixels, normalize=True))
            cells = F.normalize(visual(pixels)["dense_embedding"], dim=1)
            scores = torch.einsum("bchw,kc->bkhw", cells, names)
            found = F.interpolate(scores, (SIDE, SIDE), mode="bilinear").argmax(dim=1).cpu()
            labels = torch.stack([label for _, label, _ in batch])
            right += int((found == labels).sum())
            total += int((labels >= 0).sum())
    model.train(was_training)
    return {
        "images": num_images,
        "dense_accuracy": right / max(total, 1),
        **retrieval_at_1(torch.cat(images), texts, captions),
    }


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
    names = [f"a {world.class_names[instance.category]}" for instance in instances]
    return image, labels, " and ".join(names) or "nothing"


def _dense_visual(model: CLIP, architecture: str) -> CLIPViT | CLIPResNet:
    """The visual encoder of an open_clip model, as DenseCLIP takes it, in evaluation mode."""
    found = get_clip_architecture(architecture)
    vision = found.vision
    common = {"width": vision.width, "head_width": vision.head_width, "embed_dim": found.embed_dim}
    visual: CLIPViT | CLIPResNet
    if isinstance(vision.layers, int):
        visual = CLIPViT(
            **common, layers=vision.layers, patch_size=vision.patch_size, mlp_ratio=vision.mlp_ratio,
            grid_size=vision.image_size // vision.patch_size, quick_gelu=found.quick_gelu, dense="value",
            norm="BN", out_features=(),
        )  # fmt: skip
    else:
        visual = CLIPResNet(
            **common, layers=tuple(vision.layers), resolution=vision.image_size, dense="value", norm="BN"
        )
    visual.load_state_dict(model.visual.state_dict())
    return visual.eval()
