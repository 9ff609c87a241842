"""Fine-tuning from models with other classes."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file
from torch.testing import assert_close

from denseclip_d2.builder import build_model
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.checkpoint.readers import read_weights
from denseclip_d2.config import load_config
from denseclip_d2.export.safetensors import export
from denseclip_d2.shapes.dataset import CLASS_NAMES

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASKS = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
SEMANTIC = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"
ZOO = "denseclip://Shapes/denseclip_retinanet_tiny.yaml"
CLIP = "denseclip://Shapes/clip_tiny"
SIX = ("cat", "dog", "garden gnome", "wheelbarrow", "watering can", "rake")
SYSTEMS = [CONFIG, MASKS, SEMANTIC, "configs/Shapes192/clip_retinanet_tiny.yaml"] + [
    f"configs/Shapes/systems/{name}.yaml"
    for name in (
        "cascade_mask_rcnn", "deeplab_v3_plus", "faster_rcnn", "fcos", "mask_rcnn_simple_pyramid",
        "point_rend",
    )
]  # fmt: skip
CHANGING = ("cls_score", "bbox_pred", "predictor", "prediction", "point_head", "simfp_")


def model_of(names, *opts, config: str = CONFIG) -> torch.nn.Module:
    sections = [f"MODEL.{s}.NUM_CLASSES" for s in ("RETINANET", "ROI_HEADS", "SEM_SEG_HEAD", "FCOS")]
    counts = [x for key in sections for x in (key, len(names))]
    if config.endswith("point_rend.yaml"):
        counts += ["MODEL.POINT_HEAD.NUM_CLASSES", len(names)]
    return build_model(load_config(config, [*counts, "MODEL.DENSECLIP.CLASS_NAMES", tuple(names), *opts]))


def load(model: torch.nn.Module, path: str, text_weights: str = CLIP) -> None:
    DenseCLIPCheckpointer(model, text_weights=text_weights).load(path)


@pytest.mark.parametrize("config", SYSTEMS, ids=lambda path: Path(path).stem)
def test_of_a_model_of_other_classes_all_but_these_is_taken(tmp_path, config):
    trained, model = model_of(CLASS_NAMES, config=config), model_of(SIX, config=config)
    DenseCLIPCheckpointer(trained, str(tmp_path)).save("trained")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = trained.state_dict()
    DenseCLIPCheckpointer(model).resume_or_load(str(tmp_path / "trained.pth"), resume=False)
    guided = getattr(model.backbone, "guided_shapes", None)
    channels = guided[model.backbone.level].channels - 6 if guided else 0
    changed = []
    for name, tensor in model.state_dict().items():
        if theirs[name].shape == tensor.shape:
            assert torch.equal(tensor, theirs[name]), name
            continue
        changed.append(name)
        if tensor.dim() == 4 and tensor.shape[1] == channels + 6 and "predict" not in name:
            assert_close(tensor[:, :channels], theirs[name][:, :channels], rtol=0, atol=0)
            assert_close(tensor[:, channels:], before[name][:, channels:], rtol=0, atol=0)
        else:
            assert any(part in name for part in CHANGING), name
            assert_close(tensor, before[name], rtol=0, atol=0)
    assert changed
    with pytest.raises(ValueError, match="Of another shape"):
        DenseCLIPCheckpointer(model, for_training=False).load(str(tmp_path / "trained.pth"))
    with pytest.raises(ValueError, match="Of another shape"):  # a run's own checkpoint
        DenseCLIPCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)


def test_the_rest_is_strictly_matched(tmp_path):
    trained = model_of(CLASS_NAMES, "MODEL.FPN.OUT_CHANNELS", 32)
    DenseCLIPCheckpointer(trained, str(tmp_path)).save("trained")
    with pytest.raises(ValueError, match=r"Of another shape \(\d+\): backbone.fpn"):
        DenseCLIPCheckpointer(model_of(SIX)).load(str(tmp_path / "trained.pth"))


def test_as_many_classes_of_other_names_are_others(tmp_path):
    """Exported weights have the class names. A checkpoint has not."""
    trained = model_of(CLASS_NAMES)
    DenseCLIPCheckpointer(trained, str(tmp_path)).save("trained")
    path = str(tmp_path / "trained.safetensors")
    export(trained, load_config(CONFIG, []), CLASS_NAMES, source=str(tmp_path / "trained.pth"), output=path)
    names = [f"thing {i}" for i in range(18)]
    model = model_of(names)
    scores, lateral = (model.head.cls_score.weight.clone(), model.backbone.fpn.fpn_lateral4.weight.clone())
    DenseCLIPCheckpointer(model).load(path)
    assert_close(model.head.cls_score.weight, scores, rtol=0, atol=0)
    assert_close(model.backbone.fpn.fpn_lateral4.weight[:, -18:], lateral[:, -18:], rtol=0, atol=0)
    assert_close(model.head.bbox_pred.weight, trained.head.bbox_pred.weight, rtol=0, atol=0)
    DenseCLIPCheckpointer(model).load(str(tmp_path / "trained.pth"))
    assert_close(model.head.cls_score.weight, trained.head.cls_score.weight, rtol=0, atol=0)


def test_a_model_of_the_zoo_gets_the_text_encoder_of_its_clip(caplog):
    model, clip = model_of(SIX), model_of(SIX)
    DenseCLIPCheckpointer(clip).load(CLIP)
    with caplog.at_level("INFO"):
        load(model, ZOO)
    assert "fpn_lateral4.weight: 384 visual channels kept" in caplog.text
    encoder, contexts = model.backbone.language.text_encoder, model.backbone.language.contexts
    for name, tensor in clip.backbone.language.text_encoder.state_dict().items():
        assert_close(encoder.state_dict()[name], tensor, rtol=0, atol=0)
    assert_close(contexts, clip.backbone.language.contexts, rtol=0, atol=0)
    with pytest.raises(ValueError, match="has precomputed text embeddings.*TEXT_WEIGHTS to the weights of"):
        load(model_of(SIX), ZOO, "")


def test_weights_without_text_encoder_predict_with_that_of_their_clip(tmp_path):
    """A header keeps the address of the CLIP, and no path of this machine."""
    opts = ["MODEL.DENSECLIP.CLASSIFIER", "text", "MODEL.DENSECLIP.SCORE_MAP.CONCAT", "text"]
    trained = model_of(SIX, *opts)
    DenseCLIPCheckpointer(trained, str(tmp_path)).load(CLIP)
    DenseCLIPCheckpointer(trained, str(tmp_path)).save("trained")
    path, source = str(tmp_path / "a.safetensors"), str(tmp_path / "trained.pth")
    cfg = load_config(CONFIG, [*opts, "MODEL.RETINANET.NUM_CLASSES", 6])
    export(trained, cfg, SIX, source=source, output=path, omit_text_encoder=True)
    assert not any("text_encoder" in name for name in load_file(path))
    loaded = load_config(path, [])
    assert loaded.MODEL.DENSECLIP.TEXT_WEIGHTS == CLIP
    model = build_model(loaded)
    DenseCLIPCheckpointer.from_config(loaded, model, for_training=False).load(path)
    for name, tensor in trained.state_dict().items():
        assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"Missing \(\d+\): backbone.language.text_encoder"):
        DenseCLIPCheckpointer(model, for_training=False).load(path)
    local = load_config(CONFIG, ["MODEL.DENSECLIP.TEXT_WEIGHTS", source])
    with pytest.raises(ValueError, match="need MODEL.DENSECLIP.TEXT_WEIGHTS, the address of the CLIP"):
        export(
            trained, local, SIX, source=source, output=str(tmp_path / "b.safetensors"), omit_text_encoder=True
        )


def test_a_text_encoder_comes_from_a_clip_under_any_prefix_and_from_nothing_else(tmp_path):
    clip = model_of(SIX)
    weights = read_weights(PathManager.get_local_path(CLIP))["model"]
    DenseCLIPCheckpointer(clip).load(CLIP)
    path = str(tmp_path / "clip.pth")
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in weights.items()}}, path)
    load(model := model_of(SIX), ZOO, path)
    for name, tensor in clip.backbone.language.text_encoder.state_dict().items():
        assert_close(model.backbone.language.text_encoder.state_dict()[name], tensor, rtol=0, atol=0)
    torch.save({"other.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"TEXT_WEIGHTS = .*clip.pth' lacks the text encoder.*missing"):
        load(model_of(SIX), ZOO, path)
    with pytest.raises(FileNotFoundError, match="TEXT_WEIGHTS = 'nowhere.pth': there is no such file"):
        load(model_of(SIX), ZOO, "nowhere.pth")
