import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.checkpoint import DenseCLIPCheckpointer, resolve_openclip_path
from denseclip_d2.visual.attention_pool import resize_positional_embedding

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
CLIP = "RN-shapes-quickgelu"


def tiny_model(*opts) -> nn.Module:
    return build_model(prepared_cfg(CONFIG, list(opts)))


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    torch.manual_seed(7)
    return open_clip.create_model(CLIP)


def save_openai_archive(clip: nn.Module, path) -> None:
    """Save a TorchScript archive in half precision, like OpenAI's files."""

    class Archive(nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in clip.named_children():
                setattr(self, name, child)
            for name, parameter in clip.named_parameters(recurse=False):
                setattr(self, name, parameter)
            self.register_buffer("input_resolution", torch.tensor(128))

        def forward(self, x):
            return self.token_embedding(x)

    archive = torch.jit.trace(Archive().half(), torch.zeros(1, 77, dtype=torch.long))
    torch.jit.save(archive, path)
    clip.float()


def assert_holds(model: nn.Module, clip: nn.Module, **tolerance) -> None:
    visual, text = model.backbone.visual.state_dict(), model.backbone.language.text_encoder.state_dict()
    for name, tensor in clip.state_dict().items():
        if name.startswith("visual."):
            assert_close(visual[name.removeprefix("visual.")], tensor, **tolerance)
        elif name in text:
            assert_close(text[name], tensor, **tolerance)
    assert set(text) <= set(clip.state_dict())


def test_clip_weights_load_from_every_kind_of_file(clip, tmp_path):
    state = clip.state_dict()
    torch.save(state, tmp_path / "state.pt")
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "train.pt"
    )
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "clip.safetensors")
    for name in ("state.pt", "train.pt", "clip.safetensors"):
        model = tiny_model()
        DenseCLIPCheckpointer(model).load(str(tmp_path / name))
        assert_holds(model, clip, atol=0, rtol=0)


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + name: tensor for name, tensor in weights.items()}


PREFIXES = ("_orig_mod.", "module._orig_mod.", "model.", "clip_model.", "model.clip.module.", "ema_model.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_without_which_all_fits_is_removed_and_the_log_says_so(clip, tmp_path, caplog, prefix):
    detector = tiny_model().state_dict()
    for weights, for_training in ((clip.state_dict(), True), (detector, False)):
        torch.save({"epoch": 1, "state_dict": prefixed(prefix, weights)}, tmp_path / "x.pth")
        model = tiny_model()
        with caplog.at_level("INFO"):
            DenseCLIPCheckpointer(model, for_training=for_training).load(str(tmp_path / "x.pth"))
        if for_training:
            assert_holds(model, clip, atol=0, rtol=0)
        else:
            assert all(torch.equal(x, detector[name]) for name, x in model.state_dict().items())
    assert "_orig_mod" in prefix or f"without the prefix {prefix!r}" in caplog.text


def test_what_a_trainer_has_beside_the_model_is_left_aside_and_counted(clip, tmp_path, caplog):
    """Lightning's state dict includes its loss. Other checkpoints include an average of the weights."""
    state = clip.state_dict()
    loss = {"criterion.weight": torch.ones(3), "pixel_mean": torch.ones(3)}
    torch.save({"state_dict": {**prefixed("model.", state), **loss}}, tmp_path / "x.ckpt")
    DenseCLIPCheckpointer(model := tiny_model()).load(str(tmp_path / "x.ckpt"))
    assert_holds(model, clip, atol=0, rtol=0)
    assert "2 tensors whose names do not begin with 'model.' are not loaded" in caplog.text
    average = prefixed("ema.", {name: x + 1 for name, x in state.items()})
    torch.save({**average, **prefixed("net.", state)}, tmp_path / "y.pth")
    DenseCLIPCheckpointer(model := tiny_model()).load(str(tmp_path / "y.pth"))
    assert_holds(model, clip, atol=0, rtol=0)
    assert "names do not begin with 'net.'" in caplog.text


def test_of_several_weights_those_that_fit_are_taken(clip, tmp_path):
    torch.save({"model": {"other.weight": torch.ones(2)}, "clip": clip.state_dict()}, tmp_path / "x.pth")
    DenseCLIPCheckpointer(model := tiny_model()).load(str(tmp_path / "x.pth"))
    assert_holds(model, clip, atol=0, rtol=0)


def test_weights_that_fit_in_part_are_refused_with_the_prefix_and_how_many_fit(clip, tmp_path):
    state = prefixed("model.", {k: v for k, v in clip.state_dict().items() if k != "ln_final.weight"})
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    words = r"read under the key 'state_dict', without the prefix 'model.',.*Missing \(1\).*load the \d+ tens"
    with pytest.raises(ValueError, match=words):
        DenseCLIPCheckpointer(tiny_model()).load(str(tmp_path / "x.pth"))


LATERAL = "backbone.fpn.fpn_lateral3.weight"
NOTHING = [
    ({"a.b.weight": 1, "a.b.bias": 2}, r"2 tensors, every tensor's name begins with 'a.b.', and none fits"),
    ({"a.weight": 1, "b.bias": 2}, r"of 2 tensors, no name is the same. The file's first names are a.weight"),
    ({LATERAL: 7, "pixel_mean": 3}, rf"all 1 tensors .* another shape, such as {LATERAL}, \(7,\)"),
    ({"pixel_std": 3}, "holds nothing of this model"),
]


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize(("sizes", "message"), NOTHING)
def test_weights_of_which_nothing_fits_are_refused_even_in_part(tmp_path, sizes, message, allow_partial):
    torch.save({name: torch.ones(size) for name, size in sizes.items()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message) as refused:
        DenseCLIPCheckpointer(tiny_model(), allow_partial=allow_partial).load(str(tmp_path / "x.pth"))
    assert "allow-partial" not in str(refused.value)


def test_an_archive_in_half_precision_gives_float32(clip, tmp_path):
    save_openai_archive(clip, tmp_path / "archive.pt")
    model = tiny_model()
    DenseCLIPCheckpointer(model).load(str(tmp_path / "archive.pt"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_holds(model, clip, atol=1e-3, rtol=1e-3)


def test_positions_are_resized_to_the_configured_grid(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = tiny_model("MODEL.DENSECLIP.VISUAL.RESOLUTION", "320")
    DenseCLIPCheckpointer(model).load(str(tmp_path / "clip.pt"))
    expected = resize_positional_embedding(clip.visual.attnpool.positional_embedding, 10)
    assert_close(model.backbone.visual.attnpool.positional_embedding, expected)


def test_plain_clip_takes_the_visual_encoder_alone(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = tiny_model(
        "MODEL.META_ARCHITECTURE", "RetinaNetGlobalNorm",
        "MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"
    )  # fmt: skip
    DenseCLIPCheckpointer(model).load(str(tmp_path / "clip.pt"))
    assert_close(model.backbone.bottom_up.layer3[0].conv2.weight, clip.visual.layer3[0].conv2.weight)


@pytest.mark.parametrize("missing", ["visual.layer2.0.conv1.weight", "ln_final.weight"])
def test_clip_weights_with_a_tensor_missing_are_refused_by_name(clip, tmp_path, missing):
    state = {k: v for k, v in clip.state_dict().items() if k != missing}
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=missing.removeprefix("visual.")):
        DenseCLIPCheckpointer(tiny_model()).load(str(tmp_path / "clip.pt"))
    DenseCLIPCheckpointer(tiny_model(), allow_partial=True).load(str(tmp_path / "clip.pt"))


def test_clip_alone_is_no_trained_model(clip, tmp_path):
    """CLIP weights are enough to start training, but not to evaluate."""
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="backbone.language.contexts.*Name those of a trained model"):
        DenseCLIPCheckpointer(tiny_model(), for_training=False).load(str(tmp_path / "clip.pt"))
    for allow_partial in (False, True):
        checkpointer = DenseCLIPCheckpointer(tiny_model(), for_training=False, allow_partial=allow_partial)
        with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
            checkpointer.load("")


def test_an_archive_is_refused_where_the_model_has_plain_gelu(clip, tmp_path):
    """OpenAI trained with QuickGELU. With another activation its weights run, but predictions are wrong."""
    save_openai_archive(clip, tmp_path / "archive.pt")
    model = tiny_model()
    model.backbone.language.text_encoder.quick_gelu = False
    with pytest.raises(ValueError, match="trained with QuickGELU, and the model has GELU"):
        DenseCLIPCheckpointer(model).load(str(tmp_path / "archive.pt"))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS = 'nowhere.pth'"):
        DenseCLIPCheckpointer(tiny_model()).load("nowhere.pth")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    model = tiny_model()
    DenseCLIPCheckpointer(model, str(tmp_path)).save("ours")
    other = tiny_model("MODEL.FPN.OUT_CHANNELS", "32")
    with pytest.raises(ValueError, match=r"Of another shape \(\d+\): backbone.fpn"):
        DenseCLIPCheckpointer(other).load(str(tmp_path / "ours.pth"))


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    model, twin = tiny_model(), tiny_model()
    DenseCLIPCheckpointer(model, str(tmp_path)).save("ours")
    DenseCLIPCheckpointer(twin).load(str(tmp_path / "ours.pth"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def test_openclip_paths_resolve_by_open_clips_table(monkeypatch, clip, tmp_path):
    """Paths resolve and load like MODEL.WEIGHTS. A file replaces the download."""
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    entries = []

    def download(entry):
        entries.append(entry)
        return str(tmp_path / "clip.pt")

    monkeypatch.setattr("denseclip_d2.checkpoint.openclip.download_pretrained", download)
    model = tiny_model()
    DenseCLIPCheckpointer(model).load("openclip://RN50-quickgelu/openai")
    assert_holds(model, clip)
    assert "openai" in entries[0]["url"] or "openai" in entries[0]["hf_hub"]


@pytest.mark.parametrize("error", [OSError("no route"), FileNotFoundError("Failed to download")])
def test_openclip_paths_fail_clearly_without_a_network(monkeypatch, error):
    def download(entry):
        raise error

    monkeypatch.setattr("denseclip_d2.checkpoint.openclip.download_pretrained", download)
    with pytest.raises(
        FileNotFoundError, match=r"RN50-quickgelu/openai.*could not be downloaded.*copy the file"
    ):
        resolve_openclip_path("openclip://RN50-quickgelu/openai")


def test_an_unknown_tag_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'opnai'.*It has: openai"):
        resolve_openclip_path("openclip://RN50-quickgelu/opnai")


def test_weights_of_another_gelu_are_refused():
    with pytest.raises(ValueError, match="trained with GELU, and the model has QuickGELU"):
        DenseCLIPCheckpointer(tiny_model()).load("openclip://ViT-B-32/laion2b_e16")


@pytest.mark.parametrize("plain", [False, True])
def test_a_vit_takes_clips_weights_all_but_its_pyramid(tmp_path, plain):
    """The pyramid is this project's and has no CLIP weights. Training starts from its initial values."""
    torch.manual_seed(7)
    clip = open_clip.create_model("ViT-tiny-quickgelu")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    opts = ["MODEL.DENSECLIP.CLIP_MODEL", "ViT-tiny-quickgelu", "MODEL.DENSECLIP.VISUAL.RESOLUTION", "192"]
    if plain:
        opts += ["MODEL.META_ARCHITECTURE", "RetinaNetGlobalNorm"]
        opts += ["MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"]
    model = tiny_model(*opts)
    DenseCLIPCheckpointer(model).load(str(tmp_path / "clip.pt"))
    visual = model.backbone.bottom_up if plain else model.backbone.visual
    assert_close(
        visual.transformer.resblocks[1].attn.in_proj_weight,
        clip.visual.state_dict()["transformer.resblocks.1.attn.in_proj_weight"],
    )
    expected = resize_positional_embedding(clip.visual.positional_embedding, visual.grid_size)
    assert_close(visual.positional_embedding, expected)
    with pytest.raises(ValueError, match="Missing"):
        DenseCLIPCheckpointer(model, for_training=False).load(str(tmp_path / "clip.pt"))


def test_contexts_begin_from_words_as_the_loaded_clip_embeds_them(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    words = ("MODEL.DENSECLIP.PROMPT.CONTEXT_INIT", "a photo of a", "MODEL.DENSECLIP.PROMPT.N_CTX", 4)
    model = tiny_model(*words)
    DenseCLIPCheckpointer(model).load(str(tmp_path / "clip.pt"))
    tokens = open_clip.tokenize("a photo of a")[0, 1:5]
    assert_close(model.backbone.language.contexts[0], clip.token_embedding.weight[tokens])
    nn.init.ones_(model.backbone.language.contexts)
    torch.save({"model": model.state_dict()}, tmp_path / "trained.pth")
    DenseCLIPCheckpointer(again := tiny_model(*words), for_training=False).load(str(tmp_path / "trained.pth"))
    assert (again.backbone.language.contexts == 1).all()
