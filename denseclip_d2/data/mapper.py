import copy
import logging
from collections.abc import Callable, Iterable

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from .pictures import read_image
from .semantic import check_label_size, check_labels, read_labels
from .tasks import is_panoptic_deeplab, is_semantic
from .transforms import PadToSize, RandomScaleShortestEdge, ResizeShortestEdge

logger = logging.getLogger(__name__)


class DatasetMapper(_DatasetMapper):
    """Detectron2's mapper with this project's reader, its augmentations, and a resizing for thin images.

    Masks may be RLE, compressed or as lists of counts, whatever ``INPUT.MASK_FORMAT`` is.
    """

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = _with_own(arguments["augmentations"], cfg, is_train)
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """Map a record as Detectron2 does, but for the reader of images and of label images.

        Raises:
            ValueError: an image cannot be used, or has another size than annotated.
        """
        record = copy.deepcopy(dataset_dict)
        image = _read(record, self.image_format)
        label = record.pop("sem_seg_file_name", None)
        augmented = T.AugInput(image, sem_seg=read_labels(label) if label else None)
        transforms = self.augmentations(augmented)
        size = augmented.image.shape[:2]
        record["image"] = _as_tensor(augmented.image)
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, size)
        return record

    def _transform_annotations(self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple) -> None:
        """Give an image with RLE masks bitmaps for all its masks: Detectron2 has no polygons of RLE."""
        mapper = copy.copy(self)
        learned = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        masks = [a.get("segmentation") for a in learned] if self.use_instance_mask else []
        if rle := [mask for mask in masks if isinstance(mask, dict)]:
            mapper.instance_mask_format = "bitmask"
            for mask in rle:
                if isinstance(mask["counts"], list):
                    mask.update(mask_util.frPyObjects(mask, *mask["size"]))
        # Without any mask, Detectron2 would fail to compute boxes of masks.
        mapper.recompute_boxes = self.recompute_boxes and any(masks)
        super(DatasetMapper, mapper)._transform_annotations(dataset_dict, transforms, image_shape)


class SemanticMapper:
    """Images with the labels of their pixels, as Detectron2's semantic segmentors take them.

    Where it differs from Detectron2's mapper: labels are the values of the file, of PNGs with a palette too,
    and checked; an image is cropped after it is resized, and padded to the crop's size.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int,
    ):
        """
        Args:
            is_train: whether to return labels; they are checked in any case.
            augmentations: what happens to image and labels, in this order.
            image_format: "RGB", or another that :func:`read_image` knows.
            num_classes, ignore_label: labels are below ``num_classes``, or ``ignore_label``.
        """
        mode = "training" if is_train else "inference"
        logger.info("Augmentations used in %s: %s", mode, augmentations)
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label

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

    def __call__(self, record: dict) -> dict:
        """
        Args:
            record: an image in Detectron2's format, without ``sem_seg_file_name`` where it has no labels.
        Returns: the record with ``image``, (3, H, W) uint8, and in training ``sem_seg``, (H, W) int64.
        Raises:
            ValueError: labels are out of range, not of the image's size, or in no format that holds labels.
        """
        record = dict(record)
        image = _read(record, self.image_format)
        labels, file_name = None, record.pop("sem_seg_file_name", None)
        if file_name:
            labels = read_labels(file_name)
            check_labels(labels, file_name, self.num_classes, self.ignore_label)
            check_label_size(labels.shape[::-1], file_name, image.shape[1::-1], record["file_name"])
        augmented = T.AugInput(image, sem_seg=labels if self.is_train else None)
        self.augmentations(augmented)
        record["image"] = _as_tensor(augmented.image)
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        return record


class PanopticDeepLabMapper:
    """Map records of panoptic segmentation as Detectron2's ``PanopticDeeplabDatasetMapper`` does in training.

    Detectron2's own has no method of its own that reads images.
    """

    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        panoptic_target_generator: Callable[[np.ndarray, list[dict]], dict],
    ):
        """
        Args:
            augmentations: of image and segments, in this order.
            image_format: "RGB", or another that :func:`read_image` knows.
            panoptic_target_generator: makes targets of segment ids (H, W) and ``segments_info``.
        """
        logger.info("Augmentations used in training: %s", augmentations)
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.panoptic_target_generator = panoptic_target_generator

    def __call__(self, dataset_dict: dict) -> dict:
        """Return a record with ``image``, (3, H, W) uint8, and Panoptic-DeepLab's targets.

        Raises:
            ValueError: an image cannot be used, or has another size than annotated.
        """
        record = copy.deepcopy(dataset_dict)
        image = _read(record, self.image_format)
        segments = read_image(record.pop("pan_seg_file_name"), "RGB")
        augmented = T.AugInput(image, sem_seg=segments)
        self.augmentations(augmented)
        record["image"] = _as_tensor(augmented.image)
        ids = augmented.sem_seg.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)
        return record | self.panoptic_target_generator(ids, record["segments_info"])


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict], dict]:
    """The mapper for the kind of system that ``cfg`` describes."""
    if is_train and is_panoptic_deeplab(cfg):
        return _panoptic_deeplab_mapper(cfg)
    return (SemanticMapper if is_semantic(cfg) else DatasetMapper)(cfg, is_train)


def _panoptic_deeplab_mapper(cfg: CfgNode) -> PanopticDeepLabMapper:
    from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper  # needs panopticapi

    arguments = PanopticDeeplabDatasetMapper.from_config(cfg)
    arguments["augmentations"] = _with_own(arguments["augmentations"], cfg, is_train=True)
    return PanopticDeepLabMapper(**arguments)


def _read(record: dict, image_format: str) -> np.ndarray:
    """Return the image of a record, (H, W, C), after Detectron2's check of its size."""
    image = read_image(record["file_name"], image_format)
    utils.check_image_size(record, image)
    return image


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image (H, W, C) as (C, H, W)."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _with_own(augmentations: Iterable, cfg: CfgNode, is_train: bool) -> list:
    """Detectron2's augmentations with ours in the place of its resizing, and with ``INPUT.COLOR_AUG_SSD``."""
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
