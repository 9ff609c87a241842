"""DenseCLIP's detector, plain CLIP's and Detectron2's, with random weights, images and objects."""

from copy import deepcopy

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from ..builder import build_model, inference_precision, optimize_for_inference
from ..engine.optimizer import build_gradient_clipper, build_optimizer
from ..engine.train_loop import AMP_PRECISIONS
from .runtimes import by_unverified_file

OBJECTS = 8
"""Objects in an image; COCO's images have 7.3 on average."""

COLORS = (
    "red", "green", "blue", "yellow", "white", "black", "gray", "brown", "pink", "purple", "golden",
)  # fmt: skip

# By meta-architecture: the one for plain CLIP, then Detectron2's own with its backbone.
_TWINS = {
    "DenseCLIPRetinaNet": ("RetinaNetGlobalNorm", "RetinaNet", "build_retinanet_resnet_fpn_backbone"),
    "DenseCLIPMaskRCNN": ("GeneralizedRCNN", "GeneralizedRCNN", "build_resnet_fpn_backbone"),
}


def class_names(number: int) -> tuple[str, ...]:
    """Return class names: COCO's 80, ADE20K's 150, else the first of LVIS's 1203 and of those with a color.

    Raises:
        ValueError: there are not enough names.
    """
    if number == 80:
        return tuple(category["name"] for category in COCO_CATEGORIES if category["isthing"])
    if number == 150:
        return tuple(names.split(", ")[0] for names in ADE20K_SEM_SEG_CATEGORIES)
    names = [category["synonyms"][0].replace("_", " ") for category in LVIS_CATEGORIES]
    names = [*dict.fromkeys([*names, *(f"{color} {name}" for color in COLORS for name in names)])]
    if not 0 < number <= len(names):
        raise ValueError(f"--classes {number}: only 1 to {len(names)} classes have names.")
    return tuple(names[:number])


def candidate_configs(cfg: CfgNode, num_classes: int) -> dict[str, CfgNode]:
    """Return the configs of plain CLIP's, DenseCLIP's and Detectron2's detector for a number of classes.

    Raises:
        ValueError: ``cfg`` is not a DenseCLIP detector's.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in _TWINS:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name!r}. The benchmark compares detectors for {', '.join(_TWINS)}."
        )
    on_clip, detectron2, backbone = _TWINS[name]
    architectures = {
        "CLIP": (on_clip, cfg.MODEL.BACKBONE.NAME.replace("denseclip", "clip")),
        "DenseCLIP": (name, cfg.MODEL.BACKBONE.NAME),
        f"Detectron2 R{cfg.MODEL.RESNETS.DEPTH}": (detectron2, backbone),
    }
    configs = {}
    for candidate, (meta_architecture, backbone) in architectures.items():
        configs[candidate] = own = cfg.clone()
        own.defrost()
        own.TEST.OPTIMIZE_FOR_INFERENCE &= candidate in ("CLIP", "DenseCLIP")  # Detectron2 has no such key
        own.MODEL.META_ARCHITECTURE, own.MODEL.BACKBONE.NAME = meta_architecture, backbone
        own.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES
        own.MODEL.DENSECLIP.CLASS_NAMES = class_names(num_classes)
        own.MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS = 0
        own.MODEL.RETINANET.NUM_CLASSES = own.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        # Every level passes its full number of candidates on, whatever the random scores.
        own.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    return configs


class Candidate:
    """A detector with its optimizer and a batch."""

    def __init__(self, cfg: CfgNode, batch: int, size: tuple[int, int], num_classes: int, *, training: bool):
        self.cfg = cfg
        model, self.device = build_model(cfg), torch.device(cfg.MODEL.DEVICE)
        _detect_class_0_everywhere(model)
        weights = deepcopy(model.state_dict()) if cfg.TEST.RUNTIME else {}
        self.model = model if training else optimize_for_inference(cfg, model)
        self.optimizer = build_optimizer(cfg, self.model) if training else None
        self.clip = build_gradient_clipper(cfg)
        self.amp = cfg.SOLVER.AMP.ENABLED, AMP_PRECISIONS[cfg.SOLVER.AMP.PRECISION]
        self.batch = [random_input(size, i, num_classes) for i in range(batch)]
        if weights:
            by_unverified_file(cfg, weights, self.model, self.batch)

    def held_bytes(self) -> int:
        """Return the bytes of weights, buffers and the optimizer's state; a step frees its gradients."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for state in self.optimizer.state.values() if self.optimizer else ():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.nbytes for tensor in tensors)

    def step(self) -> None:
        """Run inference, or a training step with the optimizer."""
        enabled, precision = self.amp
        autocast = torch.autocast(self.device.type, precision, enabled=enabled)
        if self.optimizer is None:
            with torch.no_grad(), autocast, inference_precision(self.cfg):
                self.model(self.batch)
            return
        with autocast, EventStorage():
            loss = sum(self.model(self.batch).values())
        loss.backward()
        if self.clip:
            self.clip(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()


def random_input(size: tuple[int, int], seed: int, num_classes: int) -> dict:
    """Return an image of noise, boxes of many sizes and their masks, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    limits = torch.tensor([width, height])
    sides = limits * (0.05 + 0.5 * torch.rand(OBJECTS, 2, generator=generator))
    corners = (limits - sides) * torch.rand(OBJECTS, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=1)
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(num_classes, (OBJECTS,), generator=generator)
    polygons = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
    instances.gt_masks = PolygonMasks([[polygon] for polygon in polygons])
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


def _detect_class_0_everywhere(model: nn.Module) -> None:
    # With random scores there would be no detections, and the mask head would have no work. Class 0 makes
    # every proposal a candidate, which gives the maximum number of detections.
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers):
            nn.init.zeros_(module.cls_score.weight)
            module.cls_score.bias.data[0] = 10.0
