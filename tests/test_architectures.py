"""Every family of CLIPs that open_clip has, by a small one of each."""

import json
import math
import sys

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import HFTokenizer
from test_engine import final_metrics

from denseclip_d2.builder import build_model, build_model_with_weights
from denseclip_d2.checkpoint.exported import export
from denseclip_d2.clip_models import get_clip_architecture, pixels_of
from denseclip_d2.config import load_config
from denseclip_d2.data import get_class_names
from denseclip_d2.data.caption_table import CaptionTable
from denseclip_d2.data.captions import ImageCaptionPairs, write_pairs
from denseclip_d2.engine import Predictor, Trainer
from denseclip_d2.language import CLIPTextEncoder, PromptedTextEncoder
from denseclip_d2.language.tokenizers import HubTokenizer, get_tokenizer
from denseclip_d2.pretraining import Recipe, pretrain
from denseclip_d2.survey import survey
from denseclip_d2.visual import CLIPTimm, encoder_class
from denseclip_d2.visual.timm_backbone import TimmBackbone, create_trunk

CONFIG = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"
TWIN = "configs/Shapes/clip_semantic_fpn_tiny.yaml"

SMALL_TEXT = {"width": 64, "heads": 2, "layers": 2}
SIGMOID_TEXT = {
    "no_causal_mask": True, "pool_type": "last", "proj_bias": True, "context_length": 32,
    "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip

I18N_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_type": "none"}
CUSTOM = {"custom_text": True}


def timm_vision(model: str, pool: str, proj: str | None, size: int) -> dict:
    return {"timm_model_name": model, "timm_pool": pool, "timm_proj": proj, "image_size": size}


VIT = {"layers": 4, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}

# By name: the vision config, the text config, and what else.
FAMILIES: dict[str, tuple[dict, dict, dict]] = {
    "CLIPA": (
        {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"no_causal_mask": True},
        {},
    ),
    "layer-scale": ({**VIT, "ls_init_value": 0.1}, {"ls_init_value": 0.1}, {}),
    "worldwide": (VIT, {"pool_type": "eos", "eos_id": 49407}, {"quick_gelu": True}),
    "ConvNeXt": (timm_vision("test_convnext", "", "linear", 64), {}, {}),
    "ConvNeXt-d": (timm_vision("test_convnext", "", "mlp", 64), {}, {}),
    "Swin": (timm_vision("swin_tiny_patch4_window7_224", "", "linear", 224), {}, {}),
    "Sigmoid": (
        timm_vision("test_vit", "map", "none", 160),
        SIGMOID_TEXT,
        {**CUSTOM, "init_logit_bias": -10},
    ),
    "Sigmoid-i18n": (timm_vision("test_vit", "map", "none", 160), I18N_TEXT, CUSTOM),
    "EVA02": (timm_vision("eva02_tiny_patch14_224", "token", None, 224), {}, CUSTOM),
    "PE": (timm_vision("vit_pe_core_tiny_patch16_384", "map", None, 384), {}, CUSTOM),
    "MobileCLIP": (timm_vision("fastvit_t8", "avg", None, 256), {"no_causal_mask": True}, CUSTOM),
    "MobileCLIP2-S3": (timm_vision("fastvit_mci3", "avg", None, 256), {"no_causal_mask": True}, CUSTOM),
    "ViTamin": (timm_vision("vitamin_small_224", "", "linear", 224), {}, CUSTOM),
    "ViT-gap": (timm_vision("vit_medium_patch16_gap_256", "", "linear", 256), {}, {}),
}
LARGE = {"MobileCLIP2-S3", "ViT-gap"}  # of the kinds of MobileCLIP and ViTamin, and not trained here
TRAINED = [name for name in FAMILIES if name not in LARGE]


@pytest.fixture(scope="module", autouse=True)
def small_ones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architectures")
    for name, (vision, text, more) in FAMILIES.items():
        config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": {**SMALL_TEXT, **text}, **more}
        (folder / f"tiny-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def clip_of(family: str) -> open_clip.CLIP:
    return open_clip.create_model(f"tiny-{family}", force_image_size=None).eval()


def visual_of(model: open_clip.CLIP, family: str, **kwargs):
    architecture = get_clip_architecture(f"tiny-{family}")
    kind = encoder_class(architecture)
    visual = kind(**kind.arguments_of(architecture), norm="BN", **kwargs).eval()
    missing, unexpected = visual.load_state_dict(model.visual.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("fpn") for name in missing)
    return visual


@pytest.mark.parametrize("family", FAMILIES)
def test_the_global_embedding_is_open_clips(family):
    model = clip_of(family)
    side = FAMILIES[family][0]["image_size"]
    ours = side // 14 * 16 if family == "EVA02" else side  # whose patches have 14 pixels, of 16 that they get
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
    """One linear layer, one norm, one pool: what is made of a cell is what is made of a map of such cells."""
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
        visual.positional_embedding[1:] = visual.positional_embedding[1]  # no cell differs from another
        features = visual(torch.ones(1, 3, 64, 64))
    cells = features["dense_embedding"].flatten(2)
    torch.testing.assert_close(cells, cells[..., :1].expand_as(cells), rtol=1e-4, atol=1e-5)
    if family == "CLIPA":  # which pools cells; the others have a class token
        torch.testing.assert_close(features["global_embedding"], cells[..., 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "family", ["CLIPA", "layer-scale", "worldwide", "Sigmoid", "Sigmoid-i18n", "MobileCLIP"]
)
def test_sentences_are_embedded_as_open_clip_does(family):
    names = ["red square", "dog", "traffic light", "hair drier"]
    model, architecture = clip_of(family), get_clip_architecture(f"tiny-{family}")
    encoder = CLIPTextEncoder.from_architecture(architecture)
    weights = model.text.state_dict() if hasattr(model, "text") else model.state_dict()
    encoder.load_state_dict(weights, strict=hasattr(model, "text"))
    language = PromptedTextEncoder(
        class_names=names, text_encoder=encoder, mode="template", template="a {}"
    ).eval()
    ids = open_clip.get_tokenizer(f"tiny-{family}")([f"a {name}" for name in names])
    with torch.no_grad():
        embeddings, expected = language(torch.zeros(1, 64), torch.zeros(1, 64, 1, 1)), model.encode_text(ids)
    torch.testing.assert_close(embeddings[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["Sigmoid", "worldwide"])
def test_contexts_that_are_words_are_read_as_words(family):
    architecture = get_clip_architecture(f"tiny-{family}")
    encoder = CLIPTextEncoder.from_architecture(architecture)
    names = ["red square", "dog"]
    learnt = PromptedTextEncoder(
        class_names=names, text_encoder=encoder, mode="context", num_contexts=1, context_init="a"
    )
    fixed = PromptedTextEncoder(class_names=names, text_encoder=encoder, mode="template", template="a {}")
    nothing = torch.zeros(1, 64), torch.zeros(1, 64, 1, 1)
    torch.testing.assert_close(learnt(*nothing), fixed(*nothing), rtol=1e-4, atol=1e-5)
    learnt(*nothing).sum().backward()
    assert learnt.contexts.grad.any() and not any(p.requires_grad for p in encoder.parameters())


def test_where_padding_is_read_names_are_encoded_in_parts():
    encoder = CLIPTextEncoder.from_architecture(get_clip_architecture("tiny-Sigmoid"))
    ids = torch.randint(1, 1000, (90, 5))  # of 32 positions each, and so in more parts than are stored
    contexts = torch.randn(1, 4, 64, requires_grad=True)
    torch.testing.assert_close(encoder(ids, contexts), encoder.encode_unpacked(ids, contexts))


def options(family: str, weights: str, output, **more) -> list[str]:
    opts = {
        "MODEL.DENSECLIP.CLIP_MODEL": f"tiny-{family}", "MODEL.WEIGHTS": weights,
        "MODEL.DENSECLIP.VISUAL.DENSE": "attention", "MODEL.DENSECLIP.VISUAL.RES5_DILATION": 1,
        "MODEL.CHANNELS_LAST": False, "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64,
        "DATASETS.TRAIN": "('train',)", "DATASETS.TEST": "('val',)", "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "OUTPUT_DIR": output, **more,
    }  # fmt: skip
    return [str(x) for pair in opts.items() for x in pair]


@pytest.mark.parametrize("family", TRAINED)
def test_one_of_each_family_trains_evaluates_exports_and_loads(family, semantic_shapes, tmp_path):
    clip = tmp_path / "clip.pt"
    torch.save(clip_of(family).state_dict(), clip)
    cfg = load_config(CONFIG, options(family, str(clip), tmp_path / "output"))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    language = trainer.model.backbone.language
    learnt = [language.contexts, language.gamma, language.context_decoder.out_proj[1].weight]
    trainer.train()
    assert all(parameter.grad.any() for parameter in learnt)
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
        model=f"tiny-{family}", steps=1, batch_size=4, alike=2, warmup=1, period=1, num_evaluated=2,
    )  # fmt: skip
    pretrain(recipe, CaptionTable(tmp_path / "pairs" / "captions.tsv"), tmp_path / "clip")
    metrics = final_metrics(tmp_path / "clip")
    assert 0 <= metrics["dense_accuracy"] <= 1 and math.isfinite(metrics["loss"])


@pytest.mark.parametrize("family", ["ConvNeXt", "Sigmoid", "EVA02"])
def test_the_twin_takes_the_weights_that_it_has_a_use_for(family, tmp_path):
    model = clip_of(family)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    twin = build_model_with_weights(
        load_config(TWIN, options(family, str(tmp_path / "clip.pt"), tmp_path)), fresh_start=True
    )
    state, own = twin.backbone.bottom_up.state_dict(), model.visual.state_dict()
    loaded = [name for name in state if not name.startswith("fpn")]
    assert loaded and all(torch.equal(state[name], own[name]) for name in loaded)

    del model  # of another size
    torch.save(
        {f"visual.{k}": v for k, v in own.items() if "blocks.1" not in k and "stages.1" not in k},
        tmp_path / "part.pt",
    )
    with pytest.raises(ValueError, match="does not hold this model. Missing"):
        build_model_with_weights(
            load_config(TWIN, options(family, str(tmp_path / "part.pt"), tmp_path)), fresh_start=True
        )


@pytest.mark.parametrize(
    "family, depth", [("ConvNeXt", 3), ("EVA02", 3), ("MobileCLIP", 2), ("MobileCLIP", 5)]
)
def test_a_frozen_part_stays_as_it_is(family, depth, tmp_path):
    visual = visual_of(clip_of(family), family, freeze_at=depth, drop_path_rate=0.5).train()
    stage = list(visual.stages.values())[depth - 2]
    last = visual.trunk.feature_info[stage]["module"]
    frozen = [name for name, p in visual.trunk.named_parameters() if not p.requires_grad]
    assert any(name.startswith(f"{last}.") for name in frozen)
    assert any(p.requires_grad for p in visual.parameters())
    before = {name: x.clone() for name, x in visual.trunk.state_dict().items()}
    features = visual(torch.randn(2, 3, 64, 64))
    features["dense_embedding"].sum().backward()
    assert all(visual.trunk.get_parameter(name).grad is None for name in frozen)
    statistics = [name for name in before if "running" in name and name.startswith((f"{last}.", "stem"))]
    assert all(torch.equal(before[name], visual.trunk.state_dict()[name]) for name in statistics)
    assert torch.equal(visual(x := torch.ones(1, 3, 64, 64))["res2"], visual(x)["res2"]) or depth < 2


def test_activations_can_be_computed_again():
    torch.manual_seed(0)
    model = clip_of("EVA02")
    image, gradients = torch.randn(1, 3, 64, 64), []
    for again in (False, True):
        visual = visual_of(model, "EVA02", activation_checkpointing=again).train()
        torch.manual_seed(0)
        visual.fpn1.load_state_dict(visual_of(model, "EVA02").fpn1.state_dict())
        visual(image)["dense_embedding"].square().sum().backward()
        gradients.append(visual.trunk.blocks[0].attn.proj.weight.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="count each batch twice"):
        visual_of(clip_of("MobileCLIP"), "MobileCLIP", activation_checkpointing=True)


def test_what_crashes_torch_is_refused():
    keys = {"CLIP_MODEL": "tiny-MobileCLIP", "VISUAL.DENSE": "attention"}
    opts = [x for key, value in keys.items() for x in (f"MODEL.DENSECLIP.{key}", value)]
    with pytest.raises(ValueError, match="CHANNELS_LAST True: torch writes beyond its memory"):
        build_model(load_config(CONFIG, [*opts, "MODEL.DEVICE", "cpu"]))


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
    cfg = load_config(CONFIG, [])
    cfg.MODEL.PIXEL_MEAN = []
    with pytest.raises(ValueError, match="PIXEL_MEAN or PIXEL_STD is empty: `denseclip_d2.config.set_pixels"):
        build_model(cfg)


def test_a_tokenizer_of_a_hub_fails_clearly_without_it(monkeypatch):
    siglip = get_clip_architecture("ViT-B-16-SigLIP")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="tokenizer 'timm/ViT-B-16-SigLIP'.* pip install transformers"):
        get_tokenizer(siglip)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(
        FileNotFoundError, match="could not be downloaded .no route.*get_tokenizer\\('ViT-B-16-SigLIP'"
    ):
        get_tokenizer(siglip)


class FromAHub:
    """What transformers' tokenizers have, of those that begin with a start token and of those that do not."""

    eos_token_id, sep_token_id, pad_token_id, all_special_ids = 1, 102, 1, [1, 2, 101, 102]

    def __init__(self, start: list[int]):
        self.first = start

    def __call__(self, texts):
        ids = [
            [*self.first, *(10 + len(word) for word in text.split()), 102 if self.first else 1]
            for text in texts
        ]
        return type("Encoding", (), {"input_ids": ids})


@pytest.mark.parametrize("start, expected", [([], [13, 15, 1]), ([101], [101, 13, 15, 0])])
def test_a_tokenizer_of_a_hub_is_taken_as_it_is(start, expected):
    hub = HFTokenizer.__new__(HFTokenizer)
    hub.tokenizer, hub.strip_sep_token, hub.clean_fn = FromAHub(start), bool(start), str.strip
    tokenizer = HubTokenizer(hub)
    assert (tokenizer.start, tokenizer.pad_id) == (len(start), 1)
    assert tokenizer.encode([" red fence"]) == [expected]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("roberta-ViT-B-32", "text encoder of Hugging Face's .roberta-base."),
        ("coca_ViT-B-32", "is a CoCa"),
        ("vit_relpos_medium_patch16_cls_224", "images of one size alone"),
    ],
)
def test_what_cannot_be_is_refused_by_name_with_the_reason(name, reason):
    finding = survey(load_config(CONFIG, []), name)
    assert not finding.built and finding.name == name
    with pytest.raises(ValueError, match=reason):
        raise ValueError(finding.note)


@pytest.mark.parametrize(
    "name", ["RN101", "ViT-H-14-CLIPA", "ViT-M-16-alt", "convnext_large_d", "ViT-B-16-SigLIP2"]
)
def test_architectures_of_full_size_are_built(name):
    finding = survey(load_config(CONFIG, []), name)
    assert finding.built, finding.note


def test_a_model_of_timm_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="timm has no model 'convnext_huge'. Near it: convnext"):
        create_trunk("convnext_huge")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("maxvit_rmlp_pico_rw_256", "MaxxVit is no backbone: it does not take images of any size .height"),
        ("botnet26t_256", "does not take images of any size .AssertionError"),
        ("mixer_s32_224", "does not take images of any size"),
        ("mobilevitv2_050", r"of 96 x 160 pixels, its res5 is \(4, 6\), not \(3, 5\)"),
        ("inception_v3", r"its res2 is \(20, 36\), not \(24, 40\)"),
    ],
)
def test_a_model_that_takes_some_sizes_alone_is_refused(name, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        TimmBackbone(create_trunk(name), norm="BN")


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        (
            "poolformer_s12",
            {"freeze_at": 1},
            "FREEZE_AT is 1; timm does not tell which .* MetaFormer that is",
        ),
        ("vgg11", {"freeze_at": 2}, "FREEZE_AT is 2; timm does not tell which"),
        ("selecsls42", {"norm": "FrozenBN", "activation_checkpointing": True}, "timm's SelecSls cannot"),
    ],
)
def test_what_timm_cannot_do_is_said(name, arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmBackbone(create_trunk(name), **{"norm": "BN", **arguments})


def test_a_model_without_stochastic_depth_says_so():
    with pytest.raises(ValueError, match="'selecsls42' is not built with .*set .*DROP_PATH_RATE to 0"):
        create_trunk("selecsls42", drop_path_rate=0.1)


@pytest.mark.parametrize(
    "levels, depth, trained",
    [
        (["res4", "res5"], 2, ["res4", "res5"]),  # of a model that has no res2
        (["res4", "res5"], 4, ["res5"]),
        (["res4"], 5, []),  # its last stage left out
    ],
)
def test_stages_that_are_not_there_are_not_frozen_in_anothers_place(levels, depth, trained):
    with torch.device("meta"):
        trunk = create_trunk("efficientvit_m0")
        backbone = TimmBackbone(trunk, norm="BN", freeze_at=depth, out_features=levels)
        features = backbone(torch.zeros(2, 3, 96, 160))
    assert [name for name, x in features.items() if x.requires_grad] == trained


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dense": "value"}, "VISUAL.DENSE is 'value'; timm's models have one"),
        ({"out_features": ["res2", "p5"]}, "names p5; timm's FastVit has res2"),
        ({"norm": "GN"}, "NORM is 'GN'; timm's FastVit has batch norms"),
    ],
)
def test_what_a_model_of_timm_cannot_have_is_said(kwargs, message):
    arguments = {
        "model_name": "fastvit_t8",
        "embed_dim": 64,
        "pool": "avg",
        "proj": None,
        "norm": "BN",
        **kwargs,
    }
    with pytest.raises(ValueError, match=message):
        CLIPTimm(**arguments)
