#!/usr/bin/env python
"""Detections or label maps, beside ground truth where there is any, and score maps of names, as pictures.

tools/demo.py --config-file F --input photo.jpg --score-map person dog --output DIR MODEL.WEIGHTS W
tools/demo.py --config-file F --dataset shapes_val --count 12 --output DIR MODEL.WEIGHTS W
tools/demo.py --zoo Shapes/denseclip_retinanet_tiny.yaml --dataset shapes_val --output DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from denseclip_d2 import model_zoo
from denseclip_d2.data import get_class_names
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine import Predictor, load_config
from denseclip_d2.engine.setup import check_writable
from denseclip_d2.visualization import (
    draw_detections,
    draw_ground_truth,
    draw_label_map,
    draw_legend,
    draw_score_map,
    grid,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="a config, or weights exported with theirs")
    model.add_argument("--zoo", metavar="NAME", help="a trained model of the zoo, by its config's name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="IMAGE", help="image files")
    source.add_argument("--dataset", help="a registered dataset, whose ground truth is drawn as well")
    parser.add_argument("--count", type=int, default=12, help="images of --dataset (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--score-map", nargs="+", default=[], metavar="NAME",
        help="classes whose score maps to draw (default: of --dataset, up to three that are in the image)",
    )  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (%(default)s)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all"
    )
    return parser.parse_args()


def panels(predictor: Predictor, record: dict, names: list[str], threshold: float) -> dict[str, np.ndarray]:
    """The pictures of one image, by title."""
    image, class_names = read_image(record["file_name"], "RGB"), get_class_names(predictor.cfg)
    truth = np.asarray(Image.open(record["sem_seg_file_name"])) if "sem_seg_file_name" in record else None
    if not names and predictor.has_score_map:
        names = [class_names[c] for c in classes_in(record, truth, len(class_names))[:3]]
    predictions = predictor(image[:, :, ::-1], names)
    if "instances" in predictions:
        row = detection_panels(image, record, predictions["instances"], class_names, threshold)
    else:
        row = segmentation_panels(image, truth, predictions["sem_seg"].argmax(0).cpu().numpy(), class_names)
    for name, scores in zip(names, predictions.get("score_maps", []), strict=True):
        row[f"score map: {name}"] = draw_score_map(image, scores.cpu().numpy(), predictor.model.backbone.tau)
    return row


def classes_in(record: dict, truth: np.ndarray | None, num_classes: int) -> list[int]:
    """Ids of the classes in an image's ground truth: of a label map, the largest first."""
    if truth is None:
        return list(dict.fromkeys(a["category_id"] for a in record.get("annotations", [])))
    areas = np.bincount(truth[truth < num_classes], minlength=num_classes)
    return [c for c in areas.argsort()[::-1].tolist() if areas[c]]


def detection_panels(
    image: np.ndarray, record: dict, instances: Instances, class_names: Sequence[str], threshold: float
) -> dict[str, np.ndarray]:
    row = {}
    if "annotations" in record:
        with_masks = instances.has("pred_masks")
        row["ground truth"] = draw_ground_truth(image, record, class_names, with_masks=with_masks)
    row["detections"] = draw_detections(image, instances, class_names, threshold)
    return row


def segmentation_panels(
    image: np.ndarray, truth: np.ndarray | None, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    maps = {"segmentation": labels} if truth is None else {"ground truth": truth, "segmentation": labels}
    row = {title: draw_label_map(image, map_, len(class_names)) for title, map_ in maps.items()}
    present = np.unique(np.concatenate([map_.ravel() for map_ in maps.values()]))
    row["classes"] = draw_legend(present[present < len(class_names)].tolist(), class_names)
    return row


def main(args: argparse.Namespace) -> None:
    setup_logger()
    if args.zoo:
        cfg = model_zoo.get_config(args.zoo, trained=True)
        cfg.merge_from_list(args.opts)
    else:
        cfg = load_config(args.config_file, args.opts)
    check_writable(args.output, "--output")
    if args.dataset:
        records = load_datasets([args.dataset], filter_empty=False, check_images=False)[: args.count]
    else:
        records = [{"file_name": path} for path in args.input]
    stems = [Path(record["file_name"]).stem for record in records]
    if len(set(stems)) < len(stems):
        raise ValueError("Two inputs have the same name; their pictures would overwrite each other.")
    predictor = Predictor(cfg)
    rows = []
    for stem, record in zip(stems, tqdm(records, unit="image"), strict=True):
        rows.append(panels(predictor, record, args.score_map, args.threshold))
        Image.fromarray(grid(rows[-1:])).save(Path(args.output, f"{stem}.png"))
    Image.fromarray(grid(rows[:4])).save(Path(args.output, "overview.png"))
    print(f"Wrote {len(records)} pictures, and an overview of the first, to {args.output}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
