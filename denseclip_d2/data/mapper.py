import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from .coco_masks import encode
from .image_io import read_image
from .semantic import check_label_size, check_labels, read_labels
from .tasks import is_panoptic_deeplab, is_semantic
from .transforms import PadToSize, RandomScaleShortestEdge, ResizeShortestEdge


class DatasetMapper(_DatasetMapper):
    """Detectron2's mapper with this project's reader and augmentations, and a resizing for thin images.

    Masks may be RLE, compressed or as lists of counts, with any ``INPUT.MASK_FORMAT``.
    """

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = _with_own(arguments["augmentations"], cfg, is_train)
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """Map a record as Detectron2 does, with this project's reader.

        Returns: the record with ``image``, (3, H, W) uint8, and with labels ``sem_seg``, (H, W) int64.
        Raises:
            ValueError: an image cannot be used, or has another size than annotated.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format)
        utils.check_image_size(record, image)
        augmented = T.AugInput(image, sem_seg=self._read_labels(record, image))
        transforms = self.augmentations(augmented)
        size = augmented.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, size)
        return record

    def _read_labels(self, record: dict, image: np.ndarray) -> np.ndarray | None:
        label = record.pop("sem_seg_file_name", None)
        return read_labels(label) if label else None

    def _transform_annotations(self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple) -> None:
        """Use bitmaps for all masks of an image with an RLE, which Detectron2 cannot turn into polygons."""
        mapper = copy.copy(self)
        learned = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        masks = [a.get("segmentation") for a in learned] if self.use_instance_mask else []
        if rle := [mask for mask in masks if isinstance(mask, dict)]:
            mapper.instance_mask_format = "bitmask"
            for mask in rle:
                mask.update(encode(mask, *mask["size"]))
        # Without any mask, Detectron2 would fail to compute boxes of masks.
        mapper.recompute_boxes = self.recompute_boxes and any(masks)
        super(DatasetMapper, mapper)._transform_annotations(dataset_dict, transforms, image_shape)


class SemanticMapper(DatasetMapper):
    """Map images and label maps for Detectron2's semantic segmentors.

    Unlike Detectron2's mapper, labels are the values of the file, also of PNGs with a palette. They are
    checked, and returned only in training. An image is cropped after the resizing, and padded to the crop.
    """

    @configurable
    def __init__(self, is_train: bool, *, num_classes: int, ignore_label: int, **kwargs):
        """
        Args:
            num_classes, ignore_label: labels are below ``num_classes``, or ``ignore_label``.
            is_train, kwargs: as for Detectron2's mapper.
        """
        super().__init__(is_train, **kwargs)
        self.num_classes, self.ignore_label = num_classes, ignore_label

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        crop, head = cfg.INPUT.CROP, cfg.MODEL.SEM_SEG_HEAD
        augmentations = _with_own(utils.build_augmentation(cfg, is_train), cfg, is_train)
        if is_train and crop.ENABLED:
            area = crop.SINGLE_CATEGORY_MAX_AREA
            random_crop = T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, area, head.IGNORE_VALUE)
            augmentations.insert(1, random_crop)  # the first is the resizing
            if crop.TYPE == "absolute":
                augmentations.append(PadToSize(crop.SIZE, cfg.MODEL.PIXEL_MEAN, head.IGNORE_VALUE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": head.NUM_CLASSES,
            "ignore_label": head.IGNORE_VALUE,
        }

    def _read_labels(self, record: dict, image: np.ndarray) -> np.ndarray | None:
        file_name = record.get("sem_seg_file_name", "")
        labels = super()._read_labels(record, image)
        if labels is not None:
            check_labels(labels, file_name, self.num_classes, self.ignore_label)
            check_label_size(labels.shape[::-1], file_name, image.shape[1::-1], record["file_name"])
        return labels if self.is_train else None


class PanopticDeepLabMapper(DatasetMapper):
    """Map records of panoptic segmentation in training as Detectron2's ``PanopticDeeplabDatasetMapper`` does.

    That class has no method of its own to read images.
    """

    def __init__(self, *, panoptic_target_generator: Callable[[np.ndarray, list[dict]], dict], **kwargs):
        """
        Args:
            panoptic_target_generator: makes targets of segment ids (H, W) and ``segments_info``.
            kwargs: as for Detectron2's mapper.
        """
        super().__init__(True, **kwargs)
        self.panoptic_target_generator = panoptic_target_generator

    def __call__(self, dataset_dict: dict) -> dict:
        """Return a record with ``image``, (3, H, W) uint8, and Panoptic-DeepLab's targets.

        Raises:
            ValueError: an image cannot be used, or has another size than annotated.
        """
        record = super().__call__(dataset_dict)
        ids = record.pop("sem_seg").numpy() @ np.array([1, 256, 256**2])
        return record | self.panoptic_target_generator(ids.astype(np.int32), record["segments_info"])

    def _read_labels(self, record: dict, image: np.ndarray) -> np.ndarray:
        return read_image(record.pop("pan_seg_file_name"), "RGB")

    def _transform_annotations(self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple) -> None:
        """Leave annotations as they are: targets come from the segments."""


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict], dict]:
    """Return the mapper for the kind of system that ``cfg`` describes."""
    if not (is_train and is_panoptic_deeplab(cfg)):
        return (SemanticMapper if is_semantic(cfg) else DatasetMapper)(cfg, is_train)
    from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper  # needs panopticapi

    arguments = PanopticDeeplabDatasetMapper.from_config(cfg)
    arguments["augmentations"] = _with_own(arguments["augmentations"], cfg, is_train)
    return PanopticDeepLabMapper(**arguments)


def _with_own(augmentations: Iterable, cfg: CfgNode, is_train: bool) -> list:
    """Replace Detectron2's resizing by this project's, and add ``INPUT.COLOR_AUG_SSD``."""
    scale_range = tuple(cfg.INPUT.SCALE_RANGE_TRAIN) if is_train else (1, 1)

    def own(a):
        if type(a) is not T.ResizeShortestEdge:
            return a
        resizing = a.short_edge_length, a.max_size, a.sample_style, a.interp
        if scale_range == (1, 1):
            return ResizeShortestEdge(*resizing)
        return RandomScaleShortestEdge(*resizing, scale_range)

    color = [ColorAugSSDTransform(cfg.INPUT.FORMAT)] if is_train and cfg.INPUT.COLOR_AUG_SSD else []
    return [*map(own, augmentations), *color]
