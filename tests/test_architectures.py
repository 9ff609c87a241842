"""A small CLIP of every family in open_clip."""

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import CONFIG, FAMILIES, TRAINED, TWIN, clip_of, options, visual_of
from test_engine import final_metrics

from denseclip_d2.analysis.architectures import check_architectures
from denseclip_d2.builder import build_model, build_model_with_weights
from denseclip_d2.clip_models import pixels_of
from denseclip_d2.config import load_config
from denseclip_d2.data import get_class_names
from denseclip_d2.data.caption_table import CaptionTable
from denseclip_d2.engine import Trainer
from denseclip_d2.export.safetensors import export
from denseclip_d2.inference import Predictor
from denseclip_d2.pretraining import Recipe, pretrain
from denseclip_d2.shapes.captions import ImageCaptionPairs, write_pairs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_global_embedding_is_open_clips(family):
    model = clip_of(family)
    side = FAMILIES[family][0]["image_size"]
    ours = side // 14 * 16 if family == "EVA02" else side  # patches of 14 pixels get 16
    image = torch.randn(2, 3, ours, ours)
    theirs = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
    with torch.no_grad():
        features, expected = visual_of(model, family)(image), model.encode_image(theirs)
    torch.testing.assert_close(features["global_embedding"], expected, rtol=1e-4, atol=1e-5)
    assert [x for x in features if x.startswith("res")] == ["res2", "res3", "res4", "res5"]
    for name, stride in {"res2": 4, "res3": 8, "res4": 16, "res5": 32}.items():
        assert features[name].shape[-2:] == (-(-ours // stride),) * 2


@pytest.mark.parametrize(
    "family", [f for f, (vision, _, _) in FAMILIES.items() if "timm_model_name" in vision]
)
def test_where_all_cells_are_alike_each_has_the_global_embedding(family):
    """With equal cells, a cell goes through the same layer, norm and pool as the map does."""
    visual = visual_of(clip_of(family), family)
    seen = []
    visual.trunk.forward_head, head = lambda x: seen.append(x) or head(x), visual.trunk.forward_head
    with torch.no_grad():
        visual(torch.randn(1, 3, 96, 64))
        last = seen[0]
        cell = (
            last.flatten(1, -2)[:, :1]
            if last.dim() == 3
            else last[:, :1, :1]
            if family == "Swin"
            else last[..., :1, :1]
        )
        alike = cell.expand_as(last).contiguous()
        size = (96 // visual.embedding_stride, 64 // visual.embedding_stride)
        whole, cells = visual._embed(alike), visual._embed_cells(alike, size)
    torch.testing.assert_close(cells, whole[:, :, None, None].expand_as(cells), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["ConvNeXt", "ConvNeXt-d", "MobileCLIP", "Swin"])
def test_the_embedding_of_a_map_of_one_cell_is_the_images(family):
    visual = visual_of(clip_of(family), family)
    with torch.no_grad():
        features = visual(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(
        features["dense_embedding"][:, :, 0, 0], features["global_embedding"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", ["CLIPA", "layer-scale"])
def test_cells_of_a_vit_are_embedded_as_its_mean_is(family):
    visual = visual_of(clip_of(family), family)
    with torch.no_grad():
        visual.positional_embedding[1:] = visual.positional_embedding[1]  # all cells are equal
        features = visual(torch.ones(1, 3, 64, 64))
    cells = features["dense_embedding"].flatten(2)
    torch.testing.assert_close(cells, cells[..., :1].expand_as(cells), rtol=1e-4, atol=1e-5)
    if family == "CLIPA":  # pools cells; the other families have a class token
        torch.testing.assert_close(features["global_embedding"], cells[..., 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TRAINED)
def test_one_of_each_family_trains_evaluates_exports_and_loads(family, semantic_shapes, tmp_path):
    clip = tmp_path / "clip.pt"
    torch.save(clip_of(family).state_dict(), clip)
    cfg = load_config(CONFIG, options(family, str(clip), tmp_path / "output"))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    language = trainer.model.backbone.language
    learned = [language.contexts, language.gamma, language.context_decoder.out_proj[1].weight]
    trainer.train()
    assert all(parameter.grad.any() for parameter in learned)
    metrics = final_metrics(tmp_path / "output")
    assert metrics["loss_pixel_text"] > 0 and "sem_seg/mIoU" in metrics

    final, exported = tmp_path / "output" / "model_final.pth", tmp_path / "exported.safetensors"
    export(trainer.model, cfg, get_class_names(cfg), source=str(final), output=str(exported))
    image = torch.randint(0, 256, (96, 80, 3), dtype=torch.uint8).numpy()
    again = (
        Predictor.from_weights(str(exported))
        if hasattr(Predictor, "from_weights")
        else Predictor(load_config(str(exported), []))
    )
    cfg.MODEL.WEIGHTS = str(final)
    assert torch.equal(again(image)["sem_seg"], Predictor(cfg)(image)["sem_seg"])


@pytest.mark.parametrize("family", ["ConvNeXt", "Sigmoid", "MobileCLIP"])
def test_one_of_each_kind_is_pretrained_on_captions(family, tmp_path):
    write_pairs(ImageCaptionPairs(8, seed=0), tmp_path / "pairs")
    recipe = Recipe(
        model=f"tiny-{family}", steps=1, batch_size=4, group_size=2, warmup=1, period=1, num_evaluated=2,
    )  # fmt: skip
    pretrain(recipe, CaptionTable(tmp_path / "pairs" / "captions.tsv"), tmp_path / "clip")
    metrics = final_metrics(tmp_path / "clip")
    assert 0 <= metrics["dense_accuracy"] <= 1 and math.isfinite(metrics["loss"])


@pytest.mark.parametrize("family", ["ConvNeXt", "Sigmoid", "EVA02"])
def test_the_twin_takes_the_weights_that_it_has_a_use_for(family, tmp_path):
    model = clip_of(family)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    twin = build_model_with_weights(
        load_config(TWIN, options(family, str(tmp_path / "clip.pt"), tmp_path)), for_training=True
    )
    state, own = twin.backbone.bottom_up.state_dict(), model.visual.state_dict()
    loaded = [name for name in state if not name.startswith("fpn")]
    assert loaded and all(torch.equal(state[name], own[name]) for name in loaded)

    del model  # another size
    torch.save(
        {f"visual.{k}": v for k, v in own.items() if "blocks.1" not in k and "stages.1" not in k},
        tmp_path / "part.pt",
    )
    with pytest.raises(ValueError, match="does not hold this model. Missing"):
        build_model_with_weights(
            load_config(TWIN, options(family, str(tmp_path / "part.pt"), tmp_path)), for_training=True
        )


def test_pixels_follow_the_architecture_unless_the_config_says_otherwise(caplog):
    siglip = ["MODEL.DENSECLIP.CLIP_MODEL", "ViT-B-16-SigLIP"]
    assert load_config(CONFIG, siglip).MODEL.PIXEL_MEAN == [127.5] * 3
    assert load_config(CONFIG, []).MODEL.PIXEL_STD == [68.5005327, 66.6321579, 70.32316305]
    other = load_config(CONFIG, [*siglip, "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"])
    assert other.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0] and other.MODEL.PIXEL_STD == [127.5] * 3
    assert pixels_of("ViT-L-14", "laion2b_s32b_b82k")[0] == [127.5] * 3 != pixels_of("ViT-L-14")[0]
    opts = ["MODEL.DENSECLIP.CLIP_MODEL", "tiny-layer-scale", "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"]
    build_model(load_config(CONFIG, opts))
    assert "tiny-layer-scale takes RGB of mean [122.7709383" in caplog.text
    assert "Set them to the former" in caplog.text  # not to [], which knows no tag


@pytest.mark.parametrize(
    "name, reason",
    [
        ("coca_ViT-B-32", "is a CoCa"),
        ("vit_relpos_medium_patch16_cls_224", "images of one size alone"),
    ],
)
def test_what_cannot_be_is_refused_by_name_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=reason):
        check_architectures(load_config(CONFIG, []), name)


@pytest.mark.parametrize(
    "name", ["RN101", "ViT-H-14-CLIPA", "ViT-M-16-alt", "convnext_large_d", "ViT-B-16-SigLIP2"]
)
def test_architectures_of_full_size_are_built(name, monkeypatch):
    """Tokenizers stay unread, for without a network the hub's client asks for each for a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert check_architectures(load_config(CONFIG, []), name)
