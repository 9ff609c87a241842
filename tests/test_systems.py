"""Language guidance in Detectron2 systems for which this project has no code."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from PIL import Image
from test_engine import final_metrics
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.builder import build_model
from denseclip_d2.config import load_config
from denseclip_d2.data.tasks import num_classes_section
from denseclip_d2.engine import Trainer
from denseclip_d2.evaluation.build import has_panopticapi
from denseclip_d2.inference import Predictor, with_tta
from denseclip_d2.meta_arch import language_guided
from denseclip_d2.meta_arch.pixel_text import captured_features
from denseclip_d2.meta_arch.semantic_fpn import SlidingWindowSegmentor
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES, generate_shapes, register_shapes

CONFIGS = sorted(Path("configs/Shapes/systems").glob("*.yaml"))
SYSTEMS = [path for path in CONFIGS if not path.stem.startswith("clip_")]
SIMPLE_PYRAMID = "configs/Shapes/systems/mask_rcnn_simple_pyramid.yaml"


@pytest.fixture
def options(tmp_path, catalogs, panopticapi):
    """Return ``KEY VALUE`` pairs that train a system for two iterations on a few images."""
    generate_shapes(tmp_path / "shapes", num_train=8, num_val=4, seed=3)
    register_shapes(tmp_path / "shapes")
    opts = {
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2,
        "OUTPUT_DIR": tmp_path / "output",
        # After so few iterations all scores may be below the threshold. Then there is no AP.
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "MODEL.FCOS.SCORE_THRESH_TEST": 0.0,
    }  # fmt: skip
    return [str(x) for pair in opts.items() for x in pair]


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_a_system_trains_and_is_evaluated_from_a_short_config(path, options):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("_BASE_")]
    assert len(lines) <= 15
    cfg = load_config(str(path), options)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    language = trainer.model.backbone.language
    learned = {
        "contexts": language.contexts,
        "gamma": language.gamma,
        "decoder": language.context_decoder.out_proj[1].weight,
    }
    before = {name: parameter.detach().clone() for name, parameter in learned.items()}
    trainer.train()
    for name, parameter in learned.items():
        assert parameter.grad.any() and not torch.equal(parameter, before[name]), name
    metrics = final_metrics(Path(cfg.OUTPUT_DIR))
    assert metrics["loss_pixel_text"] > 0
    assert any(math.isfinite(metrics.get(name, math.nan)) for name in ("bbox/AP", "sem_seg/mIoU")), metrics


def test_a_simple_pyramid_trains_without_language_too(options):
    cfg = load_config("configs/Shapes/systems/clip_mask_rcnn_simple_pyramid.yaml", options)
    trainer = Trainer(cfg)
    before = trainer.model.backbone.net.conv1.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.backbone.net.conv1.weight, before)
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)  # DDP's rule
    metrics = final_metrics(Path(cfg.OUTPUT_DIR))
    assert "loss_mask" in metrics and "loss_pixel_text" not in metrics and "segm/AP" in metrics


def test_a_simple_pyramid_reads_the_last_map_and_the_score_map():
    model = build_model(load_config(SIMPLE_PYRAMID, [])).eval()
    backbone = model.backbone
    assert backbone.size_divisibility == 32
    with torch.no_grad(), captured_features(backbone.fpn.net) as guided:
        features = backbone(torch.rand(1, 3, 96, 160))
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    for name, stride in strides.items():
        assert features[name].shape == (1, 64, -(-96 // stride), -(-160 // stride)), name
    assert guided["res5"].shape == (1, 96 + 18, 6, 10)
    assert_close(guided["res5"][:, 96:], features["score_map"] / backbone.tau)
    blocks = backbone.visual.transformer.resblocks
    assert backbone.visual.taps["res5"] == len(blocks)


def test_a_simple_pyramid_of_a_resnet_is_refused():
    with pytest.raises(ValueError, match="is not a ViT as CLIP has it"):
        build_model(load_config(SIMPLE_PYRAMID, ["MODEL.DENSECLIP.CLIP_MODEL", "RN-shapes-quickgelu"]))


def test_panoptic_fpn_is_evaluated_on_objects_and_labels_and_joins_both(options):
    cfg = load_config(
        "configs/Shapes/systems/panoptic_fpn.yaml",
        [*options, "SOLVER.MAX_ITER", "1"],
    )
    trainer = Trainer(cfg)
    trainer.train()
    metrics = final_metrics(Path(cfg.OUTPUT_DIR))
    for name in ("loss_sem_seg", "loss_mask", "loss_pixel_text", "bbox/AP", "segm/AP", "sem_seg/mIoU"):
        assert math.isfinite(metrics[name]), metrics
    assert ("panoptic_seg/PQ" in metrics) == has_panopticapi()
    with torch.no_grad():
        output = trainer.model.eval()([{"image": torch.zeros(3, 96, 128)}])[0]
    assert output["sem_seg"].shape == (2, 96, 128)
    assert output["panoptic_seg"][0].shape == (96, 128)
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(ValueError, match="there is no test-time augmentation of DenseCLIPPanopticFPN"):
        with_tta(cfg, trainer.model)


def test_panoptic_deeplab_is_evaluated_on_labels_and_makes_one_image(options):
    cfg = load_config("configs/Shapes/systems/panoptic_deeplab.yaml", [*options, "SOLVER.MAX_ITER", "1"])
    trainer = Trainer(cfg)
    trainer.train()
    metrics = final_metrics(Path(cfg.OUTPUT_DIR))
    for name in ("loss_sem_seg", "loss_center", "loss_offset", "loss_pixel_text", "sem_seg/mIoU"):
        assert math.isfinite(metrics[name]), metrics
    assert ("panoptic_seg/PQ" in metrics) == has_panopticapi()
    with torch.no_grad():
        output = trainer.model.eval()([{"image": torch.zeros(3, 96, 128), "height": 96, "width": 128}])[0]
    assert output["sem_seg"].shape == (19, 96, 128)
    assert output["panoptic_seg"][0].shape == (96, 128)


def test_labels_are_padded_as_a_system_pads_its_images(options):
    """Panoptic-DeepLab pads images to its own size, which the score map then covers."""
    config = "configs/Shapes/systems/panoptic_deeplab.yaml"
    cfg = load_config(config, [*options, "INPUT.MIN_SIZE_TRAIN", "(96,)"])
    model, batch = build_model(cfg), next(iter(Trainer.build_train_loader(cfg)))
    assert any(x["image"].shape[1:] != (128, 128) for x in batch)
    with captured_features(model.backbone) as features:
        loss = model(batch)["loss_pixel_text"]
    labels = torch.full((2, 128, 128), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    for label, x in zip(labels, batch, strict=True):
        height, width = x["sem_seg"].shape
        label[:height, :width] = x["sem_seg"]
    logits = features["score_map"] / cfg.MODEL.DENSECLIP.SCORE_MAP.TAU
    logits = F.interpolate(logits, size=(128, 128), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(
        logits, labels, ignore_index=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, reduction="sum"
    )
    assert_close(loss, cfg.MODEL.DENSECLIP.LOSS_WEIGHT * expected / labels.numel())


def test_panoptic_deeplab_without_panopticapi_says_how_to_get_it(monkeypatch):
    packages = ("panopticapi", "detectron2.projects.panoptic_deeplab")
    for name in [name for name in sys.modules if name.startswith(packages)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "panopticapi", None)  # None makes the import fail
    with pytest.raises(ValueError, match="needs panopticapi. Install it: pip install git"):
        load_config("configs/Shapes/systems/panoptic_deeplab.yaml", [])


def test_panoptic_deeplab_without_language_has_the_same_labels(panopticapi):
    cfg = load_config("configs/Shapes/systems/panoptic_deeplab.yaml", [])
    assert num_classes_section(cfg) == "SEM_SEG_HEAD"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "PanopticDeepLab", "build_clip_backbone"
    assert num_classes_section(cfg) == "SEM_SEG_HEAD"
    names = [name for name, _ in build_model(cfg).named_parameters()]
    assert not [name for name in names if "language" in name]


def test_panoptic_deeplab_needs_a_name_for_each_class(panopticapi):
    opts = ["MODEL.DENSECLIP.CLASS_NAMES", "['a', 'b', 'c']"]
    cfg = load_config("configs/Shapes/systems/panoptic_deeplab.yaml", opts)
    with pytest.raises(ValueError, match="3 class names for MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19"):
        build_model(cfg)


@pytest.mark.parametrize("name", ["shapes_panoptic_val_separated", "shapes_panoptic_val"])
def test_the_panoptic_quality_of_the_truth_is_whole(options, name):
    pytest.importorskip("panopticapi.evaluation")
    evaluator = COCOPanopticEvaluator(name)
    evaluator.reset()
    for record in DatasetCatalog.get("shapes_panoptic_val"):
        ids = torch.from_numpy(np.array(Image.open(record["pan_seg_file_name"]))[..., 0].astype(np.int32))
        segments = [
            {**s, "category_id": s["category_id"] if s["isthing"] or name.endswith("val") else 1}
            for s in record["segments_info"]
        ]
        evaluator.process([record], [{"panoptic_seg": (ids, segments)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)


def test_a_system_of_ones_own_is_guided_by_one_line():
    class HalvedSegmentor(SlidingWindowSegmentor):
        """A system that is unknown to this project."""

        def forward(self, batched_inputs):
            outputs = super().forward(batched_inputs)
            return {name: x / 2 for name, x in outputs.items()} if self.training else outputs

    META_ARCH_REGISTRY.register(language_guided(HalvedSegmentor, "SEM_SEG_HEAD"))
    guided = META_ARCH_REGISTRY.get("DenseCLIPHalvedSegmentor")
    try:
        opts = ["MODEL.META_ARCHITECTURE", "DenseCLIPHalvedSegmentor"]
        cfg = prepared_cfg("configs/Shapes/denseclip_semantic_fpn_tiny.yaml", opts)
        inputs = [{"image": torch.zeros(3, 64, 64), "sem_seg": torch.zeros(64, 64, dtype=torch.long)}]
        losses = guided(cfg)(inputs)
        assert set(losses) == {"loss_sem_seg", "loss_pixel_text"}
        assert issubclass(guided, SemanticSegmentor) and guided.__name__ == "DenseCLIPHalvedSegmentor"
    finally:
        META_ARCH_REGISTRY._obj_map.pop("DenseCLIPHalvedSegmentor")


def test_a_backbone_without_a_score_map_is_refused():
    opts = ["MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"]
    cfg = load_config("configs/Shapes/denseclip_retinanet_tiny.yaml", opts)
    with pytest.raises(ValueError, match="DenseCLIPRetinaNet needs a backbone with a score map"):
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def test_projects_keys_are_there_only_where_they_are_named(tmp_path):
    plain = load_config("configs/Shapes/denseclip_mask_rcnn_tiny.yaml", [])
    assert "POINT_HEAD" not in plain.MODEL
    assert isinstance(load_config("configs/Shapes/systems/point_rend.yaml", []).MODEL.POINT_HEAD, CfgNode)
    with pytest.raises(ValueError, match="set it in the config file"):
        load_config(
            "configs/Shapes/denseclip_mask_rcnn_tiny.yaml", ["MODEL.DENSECLIP.PROJECTS", "['deeplab']"]
        )
    config = tmp_path / "config.yaml"
    config.write_text("MODEL: {DENSECLIP: {PROJECTS: '(\"point_rend\",)'}}")
    assert "POINT_HEAD" in load_config(str(config), []).MODEL
    config.write_text("MODEL: {DENSECLIP: {PROJECTS: 3}}")
    with pytest.raises(ValueError, match="PROJECTS is 3; it has to be a list"):
        load_config(str(config), [])
    config.write_text("MODEL: {DENSECLIP: {PROJECTS: ['deeplab2']}}")
    with pytest.raises(ValueError, match="has 'deeplab2'; Detectron2's are point_rend, deeplab, panoptic"):
        load_config(str(config), [])


def test_score_maps_are_given_out_where_a_head_takes_windows_of_one_size(tmp_path):
    cfg = load_config("configs/Shapes/systems/deeplab_v3_plus.yaml", [])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    outputs = Predictor(cfg)(np.zeros((128, 170, 3), np.uint8), SEMANTIC_CLASS_NAMES[:2])
    assert outputs["score_maps"].shape == (2, 128, 170)
    assert outputs["sem_seg"].shape == (19, 128, 170)
