"""Backbones without CLIP weights, with pretrained weights of two sources."""

import logging

import pytest
import timm
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import SwinTransformer
from test_engine import final_metrics

from denseclip_d2.builder import build_model, build_model_with_weights
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.config import load_config
from denseclip_d2.data import get_class_names
from denseclip_d2.engine import Trainer
from denseclip_d2.engine.optimizer import build_optimizer
from denseclip_d2.export.safetensors import export
from denseclip_d2.guidance import LanguageGuidedFPN
from denseclip_d2.inference import Predictor
from denseclip_d2.language import CLIPTextEncoder, PromptedTextEncoder
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.visual import ProjectedBackbone, TimmBackbone
from denseclip_d2.visual.timm_backbone import create_trunk

CONFIG = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"
TWIN = "configs/Shapes/clip_semantic_fpn_tiny.yaml"
CLIP = "denseclip://Shapes/clip_tiny"

RESNET = {
    "MODEL.DENSECLIP.VISUAL.BACKBONE": "build_resnet_backbone", "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": "[123.675, 116.28, 103.53]", "MODEL.PIXEL_STD": "[58.395, 57.12, 57.375]",
}  # fmt: skip
TIMM = {"MODEL.DENSECLIP.VISUAL.BACKBONE": "timm/test_efficientnet"}
KINDS = {
    "Detectron2's ResNet": RESNET,
    "timm's EfficientNet": TIMM,
    "timm's ViT": {"MODEL.DENSECLIP.VISUAL.BACKBONE": "timm/test_vit"},
    "a linear embedding": {**TIMM, "MODEL.DENSECLIP.VISUAL.PROJECTION": "linear"},
}


def options(keys: dict, **more) -> list[str]:
    opts = {
        "MODEL.DENSECLIP.VISUAL.DENSE_FEATURES": "attention", "MODEL.DENSECLIP.VISUAL.RES5_DILATION": 1,
        "MODEL.CHANNELS_LAST": False, "DATALOADER.NUM_WORKERS": 0, **keys, **more,
    }  # fmt: skip
    return [str(x) for pair in opts.items() for x in pair]


def weights_of(keys: dict, path) -> str:
    """Return ImageNet weights as they are published: of the whole model, with its classifier."""
    if keys is RESNET:
        torch.save(torchvision.models.resnet18().state_dict(), path)
    else:
        torch.save(timm.create_model(keys["MODEL.DENSECLIP.VISUAL.BACKBONE"][5:]).state_dict(), path)
    return str(path)


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_any_backbone_trains_evaluates_exports_and_loads(keys, semantic_shapes, tmp_path, caplog):
    opts = {
        "MODEL.WEIGHTS": CLIP, "MODEL.DENSECLIP.VISUAL.WEIGHTS": weights_of(keys, tmp_path / "imagenet.pth"),
        "DATASETS.TRAIN": "('train',)", "DATASETS.TEST": "('val',)", "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2, "INPUT.MIN_SIZE_TRAIN": "(64,)", "OUTPUT_DIR": tmp_path / "output",
    }  # fmt: skip
    cfg = load_config(CONFIG, options(keys, **opts))
    trainer = Trainer(cfg)
    with caplog.at_level(logging.INFO):
        trainer.resume_or_load(resume=False)
    table = next(message for message in caplog.messages if "matched" in message)
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    assert int(rows["all"][0]) > 100 and rows["all"][-2:] == ["0", "0"], table
    language, visual = trainer.model.backbone.language, trainer.model.backbone.visual
    learned = [language.contexts, language.gamma, language.context_decoder.out_proj[1].weight]
    learned += list(visual.embedding.parameters())[-2:]
    trainer.train()
    assert all(parameter.grad.any() for parameter in learned)
    assert not any(parameter.requires_grad for parameter in language.text_encoder.parameters())
    metrics = final_metrics(tmp_path / "output")
    assert metrics["loss_pixel_text"] > 0 and "sem_seg/mIoU" in metrics

    final, exported = tmp_path / "output" / "model_final.pth", tmp_path / "exported.safetensors"
    export(trainer.model, cfg, get_class_names(cfg), source=str(final), output=str(exported))
    again = load_config(str(exported), [])
    assert not again.MODEL.DENSECLIP.VISUAL.WEIGHTS  # a local path, which an export leaves out
    image = torch.randint(0, 256, (96, 80, 3), dtype=torch.uint8).numpy()
    cfg.MODEL.WEIGHTS = str(final)
    assert torch.equal(Predictor(again)(image)["sem_seg"], Predictor(cfg)(image)["sem_seg"])


def built(config: str, keys: dict, **more):
    return build_model_with_weights(load_config(config, options(keys, **more)), for_training=True)


def test_a_resnet_of_detectron2_has_torchvisions_features(tmp_path):
    path = weights_of(RESNET, tmp_path / "resnet18.pth")
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    model = built(CONFIG, RESNET, **{"MODEL.WEIGHTS": CLIP, "MODEL.DENSECLIP.VISUAL.WEIGHTS": path}).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(model.backbone.visual(image)["res5"], expected)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_an_efficientnet_takes_the_weights_of_its_first_port(name, tmp_path):
    """Its state dict has the same tensors in the same order under other names."""
    own = timm.create_model(name)
    names = ["_conv_stem.weight", *(f"_layer{i}.weight" for i in range(1, len(own.state_dict())))]
    theirs = dict(zip(names, own.state_dict().values(), strict=True))
    torch.save(theirs, tmp_path / "first.pth")
    keys = {"MODEL.DENSECLIP.VISUAL.BACKBONE": f"timm/{name}"}
    model = built(
        TWIN, keys, **{"MODEL.WEIGHTS": "", "MODEL.DENSECLIP.VISUAL.WEIGHTS": tmp_path / "first.pth"}
    )
    trunk = model.backbone.bottom_up.backbone.trunk.state_dict()
    assert trunk and all(torch.equal(trunk[k], own.state_dict()[k]) for k in trunk)


def test_the_twin_begins_from_the_same_backbone(tmp_path):
    path = weights_of(TIMM, tmp_path / "imagenet.pth")
    twin = built(TWIN, TIMM, **{"MODEL.WEIGHTS": "", "MODEL.DENSECLIP.VISUAL.WEIGHTS": path}).eval()
    guided = built(CONFIG, TIMM, **{"MODEL.WEIGHTS": CLIP, "MODEL.DENSECLIP.VISUAL.WEIGHTS": path}).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            twin.backbone.bottom_up(image)["res4"], guided.backbone.visual(image)["res4"]
        )
    assert twin.backbone.bottom_up.embedding is None


def test_what_was_trained_is_not_overwritten_by_what_it_began_from(tmp_path):
    path = weights_of(TIMM, tmp_path / "imagenet.pth")
    cfg = load_config(CONFIG, options(TIMM, **{"MODEL.DENSECLIP.VISUAL.WEIGHTS": path}))
    model, again = build_model(cfg), build_model(cfg)
    DenseCLIPCheckpointer.from_config(cfg, model, str(tmp_path)).save("trained")
    DenseCLIPCheckpointer.from_config(cfg, again).load(str(tmp_path / "trained.pth"))
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("blocks.1.0.conv_exp.weight"), r"Missing \(1\): .*blocks.1.0.conv_exp.weight"),
        (lambda w: w.update({"blocks.9.weight": torch.zeros(1)}), r"Left over \(1\): .*blocks.9.weight"),
        (
            lambda w: w.update({"conv_stem.weight": torch.zeros(1)}),
            r"Of another shape \(1\): .*conv_stem.weight",
        ),
    ],
)
def test_weights_of_another_backbone_are_refused(change, message, tmp_path):
    path = tmp_path / "imagenet.pth"
    weights = timm.create_model("test_efficientnet").state_dict()
    change(weights)
    torch.save(weights, path)
    for config, clip in ((CONFIG, CLIP), (TWIN, "")):
        with pytest.raises(ValueError, match=f"does not hold this model.*{message}"):
            built(config, TIMM, **{"MODEL.WEIGHTS": clip, "MODEL.DENSECLIP.VISUAL.WEIGHTS": path})


def test_a_backbone_is_found_under_a_trainers_key_and_prefix_or_refused_by_name(tmp_path):
    weights = timm.create_model("test_efficientnet").state_dict()
    path, keys = (
        tmp_path / "x.pth",
        {"MODEL.WEIGHTS": "", "MODEL.DENSECLIP.VISUAL.WEIGHTS": tmp_path / "x.pth"},
    )
    wrapped = {f"model.backbone.{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": {**wrapped, "model.head.weight": torch.ones(2)}}, path)
    model = built(TWIN, TIMM, **keys)
    trunk = next(m for name, m in model.named_modules() if name.endswith(".trunk"))
    assert torch.equal(trunk.state_dict()["conv_stem.weight"], weights["conv_stem.weight"])
    torch.save({"other.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="VISUAL.WEIGHTS = .*x.pth' holds nothing of .*other.weight; those"):
        built(TWIN, TIMM, **keys)


@pytest.mark.parametrize(
    "weights, error, message",
    [
        ("nowhere.pth", FileNotFoundError, "VISUAL.WEIGHTS = 'nowhere.pth': there is no such file"),
        (
            "timm://test_efficientnet.none",
            ValueError,
            "timm has no such weights. It has: test_efficientnet.r160_in1k",
        ),
        ("timm://nothing.in1k", ValueError, "timm has no such weights. It has: none"),
        ("torchvision://ResNet9_Weights.V1", ValueError, "torchvision has no such weights"),
    ],
)
def test_weights_that_are_not_there_are_named(weights, error, message):
    with pytest.raises(error, match=message):
        built(TWIN, TIMM, **{"MODEL.WEIGHTS": "", "MODEL.DENSECLIP.VISUAL.WEIGHTS": weights})


@pytest.mark.parametrize(
    "weights", ["timm://test_efficientnet.r160_in1k", "torchvision://ResNet18_Weights.IMAGENET1K_V1"]
)
def test_without_a_network_the_way_out_is_said(weights, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("denseclip_d2.checkpoint.imagenet_weights.timm.create_model", offline)
    monkeypatch.setattr("denseclip_d2.checkpoint.imagenet_weights.PathManager.get_local_path", offline)
    with pytest.raises(
        FileNotFoundError, match="could not be downloaded .no route to host.. Copy the file here"
    ):
        twin = load_config(
            TWIN, options(RESNET, **{"MODEL.WEIGHTS": "", "MODEL.DENSECLIP.VISUAL.WEIGHTS": weights})
        )
        build_model_with_weights(twin, for_training=True)


def test_the_backbone_learns_slowly_and_its_embedding_does_not():
    cfg = load_config(CONFIG, options(TIMM, **{"SOLVER.BASE_LR": 0.01, "SOLVER.VISUAL_MULTIPLIER": 0.1}))
    model = build_model(cfg)
    rate = {p: group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    visual = model.backbone.visual
    assert {rate[p] for p in visual.backbone.parameters()} == {0.001}
    assert {rate[p] for p in visual.embedding.parameters()} == {0.01}


@pytest.mark.parametrize("embedding", ["attention_pool", "linear"])
def test_a_map_of_one_cell_has_the_images_embedding(embedding):
    backbone = TimmBackbone(create_trunk("test_resnet"), norm="BN")
    visual = ProjectedBackbone(backbone, embed_dim=32, embedding=embedding, dense="value").eval()
    if embedding == "attention_pool":  # only the position differs between tokens
        visual.embedding.positional_embedding.data.zero_()
    with torch.no_grad():
        features = visual(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(features["dense_embedding"][:, :, 0, 0], features["global_embedding"])
    assert features["dense_embedding"].shape == (2, 32, 1, 1)


def test_a_backbone_that_no_config_can_name_is_guided_too():
    """Detectron2's Swin is passed as a class. It is not in the registry."""
    swin = SwinTransformer(
        patch_size=4, in_chans=3, embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4
    )
    encoder = CLIPTextEncoder(vocab_size=49408, width=32, heads=2, layers=1, output_dim=16)
    guided = LanguageGuidedFPN(
        visual=ProjectedBackbone(swin, embed_dim=16),
        language=PromptedTextEncoder(
            class_names=["dog", "cat"], text_encoder=encoder, sentences=SentenceReader(n_ctx=8)
        ),
        in_features=["p0", "p1", "p2", "p3"],
        out_channels=16,
    )
    outputs = guided(torch.randn(1, 3, 64, 96))
    assert outputs["score_map"].shape == (1, 2, 2, 3)
    assert guided.output_shape()["p2"] == ShapeSpec(channels=16, stride=4)


def test_the_pixels_are_the_backbones():
    assert load_config(CONFIG, options(TIMM)).MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    siglips = {"MODEL.DENSECLIP.VISUAL.BACKBONE": "timm/vit_base_patch16_siglip_224"}
    assert load_config(CONFIG, options(siglips)).MODEL.PIXEL_MEAN == [127.5] * 3
    dino = {
        "MODEL.DENSECLIP.VISUAL.BACKBONE": "timm/vit_base_patch16_224",
        "MODEL.DENSECLIP.VISUAL.WEIGHTS": "timm://vit_base_patch16_224.dino",
    }
    assert load_config(CONFIG, options(dino)).MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    dino["MODEL.DENSECLIP.VISUAL.WEIGHTS"] = ""  # the model's default weights differ
    assert load_config(CONFIG, options(dino)).MODEL.PIXEL_MEAN == [127.5] * 3
    resnet = {k: v for k, v in RESNET.items() if "PIXEL" not in k}
    with pytest.raises(ValueError, match="For another backbone, set the values that its weights need"):
        load_config(CONFIG, options(resnet))


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"MODEL.DENSECLIP.VISUAL.BACKBONE": "timm/test_effnet"},
            "timm has no model 'test_effnet'. Near it: test_",
        ),
        (
            {"MODEL.DENSECLIP.VISUAL.BACKBONE": "timm/test_vit.none"},
            "timm's 'test_vit' has no weights 'test_vit.none'. It has: test_vit.r160_in1k",
        ),
        (
            {"MODEL.DENSECLIP.VISUAL.BACKBONE": "build_renset"},
            "VISUAL.BACKBONE is 'build_renset', which is not reg",
        ),
        (
            {"MODEL.DENSECLIP.VISUAL.WEIGHTS": "resnet.pth"},
            "VISUAL.WEIGHTS is 'resnet.pth', but VISUAL.BACKBONE, whose weights they are, is empty",
        ),
        (
            {**TIMM, "MODEL.BACKBONE.NAME": "build_denseclip_simple_fpn_backbone"},
            "needs a ViT of CLIP, and .*VISUAL.BACKBONE is 'timm/test_efficientnet'",
        ),
        (
            {**RESNET, "MODEL.RESNETS.OUT_FEATURES": "['res4']"},
            "build_resnet_backbone has no level res2, res3, res5. Choose levels from res4",
        ),
        ({**TIMM, "MODEL.DENSECLIP.VISUAL.PROJECTION": "mlp"}, "PROJECTION is 'mlp'; it has to be one of"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build_model(load_config(CONFIG, options(keys)))
