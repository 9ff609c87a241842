"""Tests that need a GPU. test_gpu.py runs them if there is one."""

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.benchmark.detectors import Candidate, candidate_configs
from denseclip_d2.builder import build_model
from denseclip_d2.config import load_config
from denseclip_d2.data.image_io import to_bgr
from denseclip_d2.engine import Trainer
from denseclip_d2.engine.train_loop import AMP_PRECISIONS
from denseclip_d2.shapes import dataset as shapes
from denseclip_d2.shapes.scene import draw_scene

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
ZOO = [f"Shapes/denseclip_{name}_tiny.yaml" for name in ("retinanet", "mask_rcnn", "semantic_fpn")]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_sees_on_a_gpu_what_it_sees_on_a_cpu(name):
    cfg = model_zoo.get_config(name, trained=True)
    image = to_bgr(draw_scene(np.random.default_rng(3), 128, 160, max_objects=4)[1])
    seen = {}
    for device in ("cpu", "cuda"):
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        outputs = Predictor(cfg)(image)
        seen[device] = {key: value.to("cpu") for key, value in outputs.items()}
    if "sem_seg" in seen["cpu"]:
        assert_close(seen["cuda"]["sem_seg"], seen["cpu"]["sem_seg"], rtol=0, atol=1e-3)
        return
    there, here = (
        detections[detections.scores > 0.1] for detections in (x["instances"] for x in seen.values())
    )
    assert len(here) == len(there) > 0
    assert_close(here.pred_boxes.tensor, there.pred_boxes.tensor, rtol=0, atol=0.05)
    assert_close(here.scores, there.scores, rtol=0, atol=1e-3)
    assert torch.equal(here.pred_classes, there.pred_classes)


def model_and_batch(**opts):
    keys = {"MODEL.WEIGHTS": "", "MODEL.DENSECLIP.CONTEXT_DECODER.DROPOUT": 0.0, **opts}
    cfg = load_config(
        CONFIG,
        [x for pair in keys.items() for x in pair] + ["MODEL.DENSECLIP.CLASS_NAMES", shapes.CLASS_NAMES],
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    instances = Instances((128, 160))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 20.0, 90.0, 100.0], [60.0, 40.0, 150.0, 120.0]]))
    instances.gt_classes = torch.tensor([1, 4])
    image = torch.randint(256, (3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return model, [{"image": image, "instances": instances}] * 2


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_graph_of_the_text_encoder_changes_no_number(precision):
    """Losses, and the contexts' gradient over two batches, before and after other weights are loaded."""
    graphed, batch = model_and_batch()
    plain, _ = model_and_batch(**{"MODEL.DENSECLIP.PROMPT.CUDA_GRAPH": False})
    plain.load_state_dict(graphed.state_dict())
    autocast = torch.autocast("cuda", AMP_PRECISIONS.get(precision), enabled=precision in AMP_PRECISIONS)
    for change in range(3):
        text, gradients = [], []
        for model in (graphed, plain):
            language = model.backbone.language
            for _ in range(2):
                with autocast:
                    text.append(language._text())
                text[-1].float().square().sum().backward()
            gradients.append(language.contexts.grad)
            language.contexts.grad = None
            with torch.no_grad():
                language.contexts.add_(0.1)
                for parameter in language.text_encoder.parameters() if change else ():
                    parameter.mul_(1.01)
        assert all(torch.equal(other, text[-1]) for other in text)
        assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())
    assert graphed.backbone.language._graphed._graph and not plain.backbone.language._graphed._graph
    copy.deepcopy(graphed)
    with autocast, EventStorage():
        sum(graphed(batch).values()).backward()


@pytest.mark.parametrize("precision", AMP_PRECISIONS)
def test_mixed_precision_trains(small_shapes, tmp_path, precision):
    _, train, _ = small_shapes
    opts = {
        "DATASETS.TRAIN": (train,), "DATASETS.TEST": (), "OUTPUT_DIR": str(tmp_path / "output"),
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": 20, "SOLVER.STEPS": (), "TEST.REPORT": False,
        "SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": precision,
    }  # fmt: skip
    trainer = Trainer(load_config(CONFIG, [x for pair in opts.items() for x in pair]))
    trainer.resume_or_load(resume=False)
    trainer.train()
    losses = trainer.storage.history("total_loss").values()
    assert all(torch.tensor(loss).isfinite() for loss, _ in losses)
    assert trainer._trainer.grad_scaler.is_enabled() == (precision == "float16")


@contextmanager
def waits():
    """Count how often the host waits for the GPU."""
    count = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: (
            count.append(message) if "synchroniz" in str(message) else None
        )
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield count
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("training", [True, False])
def test_language_makes_the_host_wait_for_nothing(training):
    configs = candidate_configs(load_config(CONFIG, ["MODEL.WEIGHTS", ""]), 80)
    numbers = {}
    for name in ("CLIP", "DenseCLIP"):
        candidate = Candidate(configs[name], 2, (128, 160), 80, training=training)
        for _ in range(2):
            candidate.step()
        torch.cuda.synchronize()
        with waits() as count:
            candidate.step()
        numbers[name] = len(count)
    assert numbers["CLIP"] > 0
    assert numbers["DenseCLIP"] <= numbers["CLIP"]
