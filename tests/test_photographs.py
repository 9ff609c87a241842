"""Models that begin from the zoo's CLIP of photographs, whose text embeddings are precomputed."""

from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.config import load_config
from denseclip_d2.engine.run_checks import check_run
from denseclip_d2.inference import Predictor

NAMES = ("dog", "Fire hydrant", "floor-wood")
CONFIGS = sorted(
    path
    for folder in ("Photographs", "CamVid")
    for path in Path("configs", folder).glob("*.yaml")
    if path.stem != "Base-small"
)


@pytest.fixture(scope="module")
def clip():
    return Predictor.from_zoo("WithoutTraining/photographs.yaml").model.backbone


def model_of(path: Path) -> torch.nn.Module:
    sections = ("RETINANET", "ROI_HEADS", "SEM_SEG_HEAD")
    counts = [x for section in sections for x in (f"MODEL.{section}.NUM_CLASSES", len(NAMES))]
    cfg = load_config(str(path), [*counts, "MODEL.DENSECLIP.CLASS_NAMES", NAMES])
    check_run(cfg)
    return build_model_with_weights(cfg, for_training=True)


def labeled() -> dict:
    instances = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[8.0, 8, 60, 60]])))
    instances.gt_classes = torch.tensor([1])
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    return {"image": image, "instances": instances, "sem_seg": torch.ones(64, 96, dtype=torch.long)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_training_begins_from_the_clip_and_its_names(path, clip):
    torch.manual_seed(0)
    model = model_of(path)
    state = model.state_dict()
    visual = next(name for name in state if name.endswith("trunk.conv_stem.weight"))
    assert_close(state[visual], clip.visual.trunk.conv_stem.weight, rtol=0, atol=0)
    with EventStorage():
        losses = model([labeled(), labeled()])
    assert ("loss_pixel_text" in losses) == path.stem.startswith("denseclip")
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if "loss_pixel_text" in losses:
        text = model.backbone.language(torch.ones(1, 1280), torch.ones(1, 1280, 1, 1))
        expected = clip.language.encode_names(["dog", "fire hydrant", "floor-wood"], None)
        assert_close(text, expected, rtol=0, atol=0)
