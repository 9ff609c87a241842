from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import BoxMode

from denseclip_d2 import Predictor
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.evaluation import evaluate_pointing
from denseclip_d2.shapes.dataset import CLASS_NAMES

# 10 x 8 pixels: a box of 8 of the first class, a polygon of 4 and a run-length mask of 2 of the second.
RECORD = {
    "file_name": "image.png",
    "height": 8,
    "width": 10,
    "annotations": [
        {"bbox": [0, 0, 4, 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"segmentation": [[6, 4, 8, 4, 8, 6, 6, 6]], "category_id": 1},
        {"segmentation": {"counts": [78, 2], "size": [8, 10]}, "category_id": 1, "iscrowd": 1},
    ],
}
FIRST, SECOND = torch.zeros(8, 10), torch.zeros(8, 10)
FIRST[:2, :4] = 1
SECOND[4:6, 6:8] = SECOND[6:, 9] = 1


def predictor_of(*score_maps):
    def predict(image, score_map_names):
        assert (image, score_map_names) == ("image.png", ["known", "never labeled"])
        return {"score_maps": torch.stack(score_maps)}

    predict.guidance = SimpleNamespace(language=SimpleNamespace(class_names=["known"]))
    return predict


def test_maps_are_judged_by_their_maximum_and_by_their_order():
    right = SECOND * 0.5
    wrong = right.clone()
    wrong[0, 9] = 0.9  # one of the 74 other pixels has a higher score
    figures = evaluate_pointing(predictor_of(FIRST, wrong), [RECORD], ["known", "never labeled"])
    assert figures["labeled"] == {
        "pairs": 1,
        "pointing": 1.0,
        "pointing_chance": pytest.approx(0.1),
        "auc": 1.0,
    }
    assert figures["unlabeled"]["pointing"] == 0
    assert figures["unlabeled"]["pointing_chance"] == pytest.approx(6 / 80)
    assert figures["unlabeled"]["auc"] == pytest.approx(73 / 74)
    figures = evaluate_pointing(predictor_of(-FIRST, torch.ones(8, 10)), [RECORD], ["known", "never labeled"])
    assert figures["labeled"]["auc"] == 0
    assert figures["unlabeled"]["auc"] == 0.5


def test_images_without_objects_are_not_asked_about():
    empty = {**RECORD, "annotations": []}
    assert evaluate_pointing(predictor_of(), [empty], ["known", "never labeled"]) == {}


def test_the_zoos_score_maps_point_at_shapes(small_shapes):
    predictor = Predictor.from_zoo("Shapes/denseclip_retinanet_tiny.yaml")
    records = load_datasets(small_shapes[1:], filter_empty=True, check_images=False)
    figures = evaluate_pointing(predictor, records, CLASS_NAMES)
    assert set(figures) == {"labeled"}
    assert figures["labeled"]["pairs"] > 20
    assert figures["labeled"]["pointing"] > 2 * figures["labeled"]["pointing_chance"]
    with pytest.raises(ValueError, match="'hexagon' is not a class"):
        evaluate_pointing(predictor, records, ["hexagon"] * 18)
