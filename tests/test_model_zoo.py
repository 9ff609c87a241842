import hashlib
import http.server
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image

from configs import prepared
from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.config import load_config
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.model_zoo import zoo
from denseclip_d2.model_zoo.zoo import ZooEntry, local_file, zoo_index
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES

NAME = "Shapes/denseclip_retinanet_tiny.yaml"
CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("name", [name for name in zoo_index() if name.endswith(".yaml")])
def test_every_entry_has_its_config_and_its_weights(name):
    model = model_zoo.get(name, trained=True)  # every tensor of it, or an error
    assert model.training
    assert model.backbone.language.folded == zoo_index()[name].folded


def test_configs_come_by_their_names():
    assert model_zoo.get_config(NAME) == load_config(f"configs/{NAME}", [])
    trained = model_zoo.get_config(NAME, trained=True)
    assert trained.MODEL.WEIGHTS == model_zoo.get_checkpoint_url(NAME) == f"denseclip://{NAME}"
    with pytest.raises(ValueError, match=f"No config 'Shapes/nothing.yaml'. There are: .*{NAME}"):
        model_zoo.get_config("Shapes/nothing.yaml")
    coco = "COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml"
    with pytest.raises(ValueError, match=f"No trained weights for '{coco}' yet. There are for: Shapes/"):
        model_zoo.get_config(coco, trained=True)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_the_zoos_models_find_shapes(small_shapes, name):
    """In pictures that they have not seen, most objects, by place and by name."""
    predictor = Predictor.from_zoo(f"Shapes/denseclip_{name}_tiny.yaml")
    found = total = 0
    for record in load_datasets(small_shapes[1:], filter_empty=False, check_images=False):
        instances = predictor(record["file_name"])["instances"]
        instances = instances[instances.scores > 0.4]
        assert instances.has("pred_masks") == (name == "mask_rcnn")
        for annotation in record["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            overlap = pairwise_iou(instances.pred_boxes, Boxes([box]))[:, 0]
            right = instances.pred_classes == annotation["category_id"]
            found, total = found + bool((overlap[right] > 0.5).any()), total + 1
    assert total > 20
    assert found / total > 0.75


def test_the_zoos_segmentor_labels_shapes(small_shapes):
    """In pictures that it has not seen, most pixels of most classes."""
    predictor = Predictor.from_zoo("Shapes/denseclip_semantic_fpn_tiny.yaml")
    right, there = torch.zeros(19), torch.zeros(19)
    for path in sorted(small_shapes[0].glob("val/*.png")):
        labels = torch.from_numpy(np.array(Image.open(small_shapes[0] / "labels" / "val" / path.name))).long()
        found = predictor(path)["sem_seg"].argmax(0)
        there += torch.bincount(labels.flatten(), minlength=19)
        right += torch.bincount(labels[labels == found], minlength=19)
    assert right.sum() / there.sum() > 0.95
    assert (right / there)[there > 0].mean() > 0.8


def test_files_pil_images_and_arrays_give_the_same(small_shapes):
    predictor = Predictor.from_zoo(NAME)
    path = next(small_shapes[0].glob("val/*.png"))
    image = Image.open(path)
    bgr = np.asarray(image.convert("RGB"))[:, :, ::-1]
    outputs = [predictor(x, score_maps_of=["red solid circle"]) for x in (str(path), path, image, bgr)]
    assert outputs[0]["score_maps"].shape == (1, *bgr.shape[:2])
    for other in outputs[1:]:
        assert torch.equal(other["instances"].scores, outputs[0]["instances"].scores)
        assert torch.equal(other["score_maps"], outputs[0]["score_maps"])
    for array in (np.zeros((8, 8)), np.zeros((0, 0, 3), np.uint8), bgr[..., :1]):
        with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8, BGR; this is \("):
            predictor(array)
    with pytest.raises(ValueError, match=r"a list of names, such as \['red solid circle'\]"):
        predictor(bgr, score_maps_of="red solid circle")


def test_a_photo_taken_upright_is_seen_upright(tmp_path):
    """However it was handed over: cameras leave the turning to the reader."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    predictor = Predictor.from_zoo(NAME)
    by_path, by_pil = (
        predictor(x)["instances"] for x in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png"))
    )
    assert by_path.image_size == by_pil.image_size == (100, 60)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT from wherever it is asked to begin, and breaks off when told to."""

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.starts.append(start)
        ranged = start and self.server.ranges
        if ranged and start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:] if ranged else CONTENT
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_off_after or len(body)])

    def log_message(self, *args):
        pass


@pytest.fixture
def published(serve, tmp_path, monkeypatch):
    """A zoo of one entry, "far.yaml", on a server: the server, and where the file is kept."""
    server = serve(Server)
    server.starts, server.breaks_off_after, server.ranges = [], 0, True
    monkeypatch.setenv("DENSECLIP_D2_CACHE", str(tmp_path / "cache"))
    entry = ZooEntry("far.safetensors", SHA256, f"http://127.0.0.1:{server.server_port}/far.safetensors")
    monkeypatch.setattr(zoo, "zoo_index", lambda: {"far.yaml": entry})
    return server, tmp_path / "cache" / "far.safetensors"


def test_a_file_is_downloaded_once_and_kept(published):
    server, path = published
    assert local_file("far.yaml") == path
    assert path.read_bytes() == CONTENT
    local_file("far.yaml")
    assert server.starts == [0]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_broken_off_goes_on_where_it_was(published, ranges):
    """Or begins anew, from a server that cannot go on."""
    server, path = published
    server.ranges, server.breaks_off_after = ranges, 300_000
    with pytest.raises(FileNotFoundError, match="could not be downloaded.*broke off at 300,000 of 1,024,000"):
        local_file("far.yaml")
    assert not path.exists()
    server.breaks_off_after = 0
    assert local_file("far.yaml").read_bytes() == CONTENT
    assert server.starts == [0, 300_000]


def test_a_download_killed_before_it_was_checked_is_not_fetched_again(published):
    _, path = published
    path.parent.mkdir()
    path.with_name(f"{path.name}.partial").write_bytes(CONTENT)
    assert local_file("far.yaml").read_bytes() == CONTENT


def test_a_file_that_is_not_the_published_one_is_not_used(published):
    _, path = published
    path.parent.mkdir()
    path.with_name(f"{path.name}.partial").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the file that was published"):
        local_file("far.yaml")
    assert not list(path.parent.iterdir())  # so that the next try begins anew
    path.write_bytes(b"changed since")
    with pytest.raises(ValueError, match=f"not the file that was published: its sha256.*not {SHA256}"):
        local_file("far.yaml")
    assert path.read_bytes() == b"changed since"  # it may be the user's


def test_a_file_of_the_package_is_not_said_to_be_fetched(monkeypatch):
    entry = ZooEntry("denseclip_retinanet_tiny.safetensors", SHA256)
    monkeypatch.setattr(zoo, "zoo_index", lambda: {"far.yaml": entry, "gone.yaml": replace(entry, file="x")})
    with pytest.raises(ValueError, match="not the file that was .* It comes with this package: install that"):
        local_file("far.yaml")
    with pytest.raises(FileNotFoundError, match="weights/x is not there. It comes with this package"):
        local_file("gone.yaml")


def test_offline_the_file_and_its_place_are_named(published):
    server, path = published
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match=f"^far.safetensors is not here.*put it at {path}"):
        local_file("far.yaml")


def test_zoo_weights_are_small_enough_for_the_repository():
    files = [Path(zoo.__file__).parent / "weights" / entry.file for entry in zoo_index().values()]
    assert all(file.stat().st_size < 16 * 10**6 for file in files)


@pytest.mark.parametrize("config", ["denseclip_retinanet_tiny", "denseclip_semantic_fpn_tiny"])
def test_score_maps_of_any_words_leave_those_of_classes_alone(config, tmp_path):
    cfg = prepared(f"configs/Shapes/{config}.yaml", ["TEST.SLIDING_WINDOW.ENABLED", "semantic" in config])
    cfg.MODEL.DENSECLIP.CLASS_NAMES = SEMANTIC_CLASS_NAMES[: 19 if "semantic" in config else 18]
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor = Predictor(cfg)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    names = ["a purple star", "red solid circle", "a purple star", "the nose of a dog"]
    maps = predictor(image, score_maps_of=names)["score_maps"]
    assert maps.shape == (4, 90, 120)
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[1], predictor(image, score_maps_of=names[1:2])["score_maps"][0])
    assert not torch.allclose(maps[0], maps[3])


def test_folded_weights_say_that_they_know_no_other_words():
    with pytest.raises(ValueError, match="No class 'a dog'.*the text of these is folded"):
        Predictor.from_zoo(NAME)(np.zeros((64, 64, 3), np.uint8), score_maps_of=["a dog"])
