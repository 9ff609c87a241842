import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling import build_model
from released import released_semantic_fpn
from test_engine import final_metrics, run_tool
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.data import register_semantic_folder
from denseclip_d2.engine import Trainer
from denseclip_d2.engine.lr_scheduler import build_lr_scheduler
from denseclip_d2.inference import Predictor, with_tta
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES

DENSECLIP = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"
CLIP = "configs/Shapes/clip_semantic_fpn_tiny.yaml"
WINDOWS = {"TEST.SLIDING_WINDOW.ENABLED": True, "TEST.SLIDING_WINDOW.SIZE": "(64, 96)",
           "TEST.SLIDING_WINDOW.STRIDE": "(43, 64)"}  # fmt: skip


def tiny_model(config: str = DENSECLIP, **keys):
    return build_model(prepared_cfg(config, [str(x) for pair in keys.items() for x in pair]))


def decisive(model):
    """Return a segmentor with random weights whose logits differ enough to compare."""
    with torch.no_grad():
        model.sem_seg_head.predictor.weight *= 100
    return model.eval()


def random_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def labeled(height: int, width: int, label: int | None = None) -> dict:
    labels = torch.randint(0, 19, (height, width)) if label is None else torch.full((height, width), label)
    return {"image": random_image(height, width), "sem_seg": labels}


def segment(model, image: dict) -> torch.Tensor:
    with torch.no_grad():
        return model([image])[0]["sem_seg"]


@pytest.fixture
def released(reference, tmp_path):
    record = reference("seg_full_tiny")
    return released_semantic_fpn(record, tmp_path), record


def recorded_inputs(model, record) -> list[dict]:
    """Return the recorded, already normalized images and label maps in the format of the mapper."""
    images = record.inputs["img"] * model.pixel_std + model.pixel_mean
    labels = record.inputs["gt"][:, 0].long()
    return [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]


def test_pyramid_logits_and_score_map_equal_the_original(released):
    model, record = released
    with torch.no_grad():
        features = model.backbone(record.inputs["img"])
        logits = model.sem_seg_head.layers(features)
        outputs = torch.stack([x["sem_seg"] for x in model(recorded_inputs(model, record))])
        assert {"p2", "p3", "p4", "p5", "score_map"} <= set(features)
    for i in range(4):
        assert_close(features[f"p{i + 2}"], record.outputs[f"neck{i}"], atol=1e-5, rtol=1e-4)
    assert_close(features["score_map"], record.outputs["score_map"], atol=1e-5, rtol=1e-4)
    assert_close(logits, record.outputs["logits_stride4"], atol=1e-5, rtol=1e-4)
    assert_close(outputs[:, :, 40:56, 70:90], record.outputs["logits_crop"], atol=1e-5, rtol=1e-4)
    # Recorded under the name of a sum.
    assert_close(outputs.mean((2, 3)), record.outputs["logits_sum_hw"], atol=1e-5, rtol=1e-4)


def test_losses_equal_the_original(released):
    model, record = released
    assert (record.inputs["gt"] == 255).any()
    model.training = model.sem_seg_head.training = True  # only these: the recording has running statistics
    with torch.no_grad():
        losses = model(recorded_inputs(model, record))
    assert_close(losses["loss_sem_seg"], record.outputs["decode.loss_ce"], atol=1e-5, rtol=1e-5)
    assert_close(losses["loss_pixel_text"], record.outputs["aux_identity.loss_ce"], atol=1e-5, rtol=1e-5)


def test_gradients_arrive_everywhere_but_at_the_text_encoder():
    """The auxiliary loss without the head reaches the visual encoder and all of the language side."""
    model = tiny_model()
    losses = model([labeled(96, 128), labeled(64, 64)])
    losses["loss_pixel_text"].backward(retain_graph=True)
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    for name in ("contexts", "gamma", "context_decoder.out_proj.1.weight"):
        assert f"backbone.language.{name}" in reached
    assert "backbone.visual.conv1.weight" in reached
    assert not any(name.startswith(("sem_seg_head", "backbone.fpn")) for name in reached)
    losses["loss_sem_seg"].backward()
    for name, parameter in model.named_parameters():
        if "text_encoder" in name:
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("config", [DENSECLIP, CLIP], ids=["DenseCLIP", "CLIP"])
@pytest.mark.parametrize("sizes", [[(96, 128), (64, 64)], [(120, 1), (1, 120)]], ids=["usual", "thin"])
def test_images_without_labels_add_nothing_to_the_loss(config, sizes):
    """If all pixels are ignored, the loss is 0 and not 0/0. If half are, the loss is halved."""
    model = tiny_model(config)
    losses = model([labeled(*size, label=255) for size in sizes])
    assert all(loss == 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    inputs = [labeled(*size) for size in sizes]
    losses = model(inputs)
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values()), losses
    for size, output in zip(sizes, model.eval()(inputs), strict=True):
        assert output["sem_seg"].shape == (19, *size)


def test_kernels_of_both_losses_can_be_switched_off():
    """The definition has the same losses, and no custom operator runs."""
    inputs = [labeled(64, 96, label=3)] * 2
    losses, operators = {}, {}
    for kernels in (True, False):
        torch.manual_seed(0)
        model = tiny_model(**{"MODEL.DENSECLIP.FUSED_OPS": kernels}).train()
        with torch.profiler.profile() as profile:
            losses[kernels] = model(inputs)
        operators[kernels] = {
            x.key: x.count for x in profile.key_averages() if x.key.startswith("denseclip_d2::")
        }
    assert operators[True]["denseclip_d2::label_map_cross_entropy"] == 2
    assert not operators[False]
    assert_close(losses[True], losses[False], rtol=1e-5, atol=1e-6)


def test_dropout_takes_whole_channels_in_training_alone():
    model = tiny_model(**{"MODEL.SEM_SEG_HEAD.DROPOUT": 0.5})
    seen = []
    model.sem_seg_head.predictor.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model([labeled(64, 64) for _ in range(2)])
    model.eval()([labeled(64, 64)])
    dropped = [(x == 0).all(dim=(2, 3)).float().mean().item() for x in seen]
    assert 0.3 < dropped[0] < 0.7
    assert dropped[1] == 0


@pytest.mark.parametrize("config", [DENSECLIP, CLIP], ids=["DenseCLIP", "CLIP"])
@pytest.mark.parametrize("size", [(50, 70), (64, 96), (65, 96), (60, 200), (150, 60), (151, 237)], ids=str)
def test_sliding_windows_equal_one_after_the_other(config, size):
    """Images smaller than, equal to and larger than the window, for any number of windows at once."""
    image = {"image": random_image(*size), "height": 90, "width": 110}
    model = decisive(tiny_model(config, **WINDOWS))
    expected = segment_slowly(model, image, (64, 96), (43, 64))
    assert expected.std() > 0.1
    for windows in (1, 3, 100):
        other = tiny_model(config, **WINDOWS, **{"TEST.SLIDING_WINDOW.MAX_PIXELS": windows * 64 * 96})
        other.load_state_dict(model.state_dict())
        assert_close(segment(other.eval(), image), expected, atol=1e-4, rtol=1e-4)


def segment_slowly(model, image: dict, size: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    """Segment window by window with the parts of the model, as the release does."""
    pixels = (image["image"] - model.pixel_mean) / model.pixel_std
    height, width = pixels.shape[1:]
    total, count = torch.zeros(19, height, width), torch.zeros(height, width)
    for i in range(max(height - size[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(width - size[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(i * stride[0] + size[0], height), min(j * stride[1] + size[1], width)
            top, left = max(bottom - size[0], 0), max(right - size[1], 0)
            window = pixels[:, top:bottom, left:right]
            padded = F.pad(window, (0, -window.shape[2] % 32, 0, -window.shape[1] % 32))
            with torch.no_grad():
                logits = model.sem_seg_head.layers(model.backbone(padded[None]))
            logits = F.interpolate(logits, padded.shape[1:], mode="bilinear", align_corners=False)
            total[:, top:bottom, left:right] += logits[0, :, : window.shape[1], : window.shape[2]]
            count[top:bottom, left:right] += 1
    sides = image["height"], image["width"]
    return F.interpolate((total / count)[None], sides, mode="bilinear", align_corners=False)[0]


def test_an_image_no_larger_than_the_window_is_seen_whole():
    image = {"image": random_image(60, 90), "height": 100, "width": 150}
    model = decisive(tiny_model(**WINDOWS))
    by_windows = segment(model, image)
    model.sliding_window = None
    assert_close(by_windows, segment(model, image))


def test_score_maps_are_of_the_whole_image(tmp_path):
    """Even if windows produce the labels, a predictor's score map is that of the whole image."""
    keys = {**WINDOWS, "MODEL.WEIGHTS": tmp_path / "model.pth", "INPUT.MIN_SIZE_TEST": 128}
    cfg = prepared_cfg(DENSECLIP, [str(x) for pair in keys.items() for x in pair])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    pixels = random_image(128, 160).permute(1, 2, 0).numpy()
    by_windows = Predictor(cfg)(pixels, SEMANTIC_CLASS_NAMES[:2])
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    whole = Predictor(cfg)(pixels, SEMANTIC_CLASS_NAMES[:2])
    assert_close(by_windows["score_maps"], whole["score_maps"])
    assert not torch.equal(by_windows["sem_seg"], whole["sem_seg"])


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"TEST.SLIDING_WINDOW.MAX_PIXELS": 6143},
            r"size \(64, 96\) has 6144 pixels, and max_pixels is 6143",
        ),
        ({"TEST.SLIDING_WINDOW.STRIDE": "(43, 97)"}, r"stride \(43, 97\) is larger than its size"),
        ({"TEST.SLIDING_WINDOW.STRIDE": "(0, 64)"}, "of at least 1"),
        ({"TEST.SLIDING_WINDOW.SIZE": "(64,)"}, "a height and a width"),
        ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 18}, "19 class names for MODEL.SEM_SEG_HEAD.NUM_CLASSES = 18"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**{**WINDOWS, **keys})


@pytest.mark.parametrize("keys, fix", [({}, "ENABLED True"), (WINDOWS, "Lower .*MAX_PIXELS")])
def test_too_little_memory_is_told_with_the_keys_that_help(monkeypatch, keys, fix):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = tiny_model(**keys).eval()
    monkeypatch.setattr(model.sem_seg_head, "forward", no_memory)
    with pytest.raises(MemoryError, match=f"TEST.SLIDING_WINDOW.*{fix}|{fix}"):
        segment(model, {"image": random_image(64, 64)})
    with pytest.raises(torch.OutOfMemoryError):  # windows do not apply in training
        model.train()([labeled(64, 64)] * 2)


@pytest.mark.parametrize("keys", [{}, WINDOWS], ids=["whole", "windows"])
def test_augmentation_averages_probabilities_over_sizes_and_mirrors(keys):
    keys = {**keys, "TEST.AUG.MIN_SIZES": "(64, 96)", "TEST.AUG.MAX_SIZE": 400, "TEST.AUG.FLIP": True}
    cfg = prepared_cfg(DENSECLIP, [str(x) for pair in keys.items() for x in pair])
    model = decisive(build_model(cfg))
    image = {"image": random_image(80, 100), "height": 120, "width": 150}
    expected = []
    for sides in ((64, 80), (96, 120)):
        pixels = ResizeTransform(80, 100, *sides).apply_image(image["image"].permute(1, 2, 0).numpy())
        copy = {**image, "image": torch.from_numpy(pixels.copy()).permute(2, 0, 1)}
        mirror = {**copy, "image": copy["image"].flip(2)}
        expected += [segment(model, copy).softmax(0), segment(model, mirror).flip(2).softmax(0)]
    ours = segment(with_tta(cfg, model), image)
    assert_close(ours, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)
    assert_close(ours.sum(0), torch.ones(120, 150))


def test_rates_follow_the_released_schedule():
    """All groups reach the same end rate: (rate - end) * (1 - i / 80000)^0.9 + end, after the warm-up."""
    cfg = prepared_cfg("configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml", [])
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-4, 1e-5)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for i in (0, 1, 700, 1499, 1500, 40000, 79999):
        scheduler.last_epoch = i
        warmup = 1 - (1 - i / 1500) * (1 - 1e-6) if i < 1500 else 1
        poly = [(rate - 1e-6) * (1 - i / 80000) ** 0.9 + 1e-6 for rate in (1e-4, 1e-5)]
        assert scheduler.get_lr() == pytest.approx([warmup * rate for rate in poly], rel=1e-9)
    state = scheduler.state_dict()
    resumed = build_lr_scheduler(cfg, optimizer)
    resumed.load_state_dict(state)
    assert resumed.get_lr() == scheduler.get_lr()


@pytest.fixture
def options(small_shapes, tmp_path):
    """Return ``KEY VALUE`` pairs of a tiny config with few images and all kinds of evaluation."""
    root, *_ = small_shapes
    names = {split: f"{tmp_path.name}_sem_seg_{split}" for split in ("train", "val")}
    for split, name in names.items():
        register_semantic_folder(name, root / split, root / "labels" / split, SEMANTIC_CLASS_NAMES)
    opts = {
        "DATASETS.TRAIN": f"('{names['train']}',)", "DATASETS.TEST": f"('{names['val']}',)",
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2,
        "DATASETS.NOVEL_CLASSES": "('red striped circle',)",
        "OUTPUT_DIR": tmp_path / "output", "TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": "(64, 96)",
        **WINDOWS,
    }  # fmt: skip
    yield [str(x) for pair in opts.items() for x in pair]
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("config", [DENSECLIP, CLIP], ids=["DenseCLIP", "CLIP"])
def test_training_ends_with_miou_of_windows_and_of_augmentation(options, config):
    cfg = prepared_cfg(config, options)
    Trainer(cfg).train()
    metrics = final_metrics(Path(cfg.OUTPUT_DIR))
    assert metrics["sem_seg/IoU_novel"] == metrics["sem_seg/IoU-red striped circle"]
    for name in ("total_loss", "sem_seg/mIoU", "sem_seg/IoU_base", "sem_seg_TTA/mIoU"):
        assert math.isfinite(metrics[name]), metrics
    cfg.SOLVER.MAX_ITER = 3
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert (trainer.start_iter, trainer.scheduler.last_epoch) == (2, 2)


def test_images_show_labels_with_a_legend_and_score_maps(small_shapes, tmp_path):
    root, *_ = small_shapes
    cfg = prepared_cfg(DENSECLIP, [])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    source = ("--dataset", "shapes_sem_seg_val"), ("--input", root / "val/000000000001.png")
    for i, arguments in enumerate(source):
        done = run_tool(
            "demo.py", *arguments, "--output", tmp_path / f"images{i}",
            "MODEL.WEIGHTS", tmp_path / "model.pth", datasets=root.parent, config=DENSECLIP,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / f"images{i}/000000000001.png").exists()
