import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from denseclip_d2.checkpoint import DenseCLIPCheckpointer, resolve_openclip_path
from denseclip_d2.config import load_config
from denseclip_d2.visual.attention_pool import resize_positional_embedding

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
CLIP = "RN-shapes-quickgelu"


def tiny_model(*opts) -> nn.Module:
    return build_model(load_config(CONFIG, list(opts)))


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    torch.manual_seed(7)
    return open_clip.create_model(CLIP)


def save_openai_archive(clip: nn.Module, path) -> None:
    """A TorchScript archive in half precision, as OpenAI's files are."""

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
        "MODEL.META_ARCHITECTURE", "CLIPRetinaNet", "MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"
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
    """Enough to begin training, not to evaluate."""
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="backbone.language.contexts"):
        DenseCLIPCheckpointer(tiny_model(), fresh_start=False).load(str(tmp_path / "clip.pt"))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        DenseCLIPCheckpointer(tiny_model(), fresh_start=False).load("")


def test_an_archive_is_refused_where_the_model_has_plain_gelu(clip, tmp_path):
    """OpenAI trained with QuickGELU; with another activation its weights run, and are wrong."""
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
    """Resolved and loaded as MODEL.WEIGHTS would be; the download itself is replaced by a file."""
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
    """The pyramid is this project's; CLIP has nothing for it, and training begins with it as it is."""
    torch.manual_seed(7)
    clip = open_clip.create_model("ViT-tiny-quickgelu")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    opts = ["MODEL.DENSECLIP.CLIP_MODEL", "ViT-tiny-quickgelu", "MODEL.DENSECLIP.VISUAL.RESOLUTION", "192"]
    if plain:
        opts += ["MODEL.META_ARCHITECTURE", "CLIPRetinaNet"]
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
        DenseCLIPCheckpointer(model, fresh_start=False).load(str(tmp_path / "clip.pt"))


def test_contexts_begin_from_words_as_the_loaded_clip_embeds_them(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    words = ("MODEL.DENSECLIP.PROMPT.CONTEXT_INIT", "a photo of a", "MODEL.DENSECLIP.PROMPT.NUM_CONTEXTS", 4)
    model = tiny_model(*words)
    DenseCLIPCheckpointer(model).load(str(tmp_path / "clip.pt"))
    tokens = open_clip.tokenize("a photo of a")[0, 1:5]
    assert_close(model.backbone.language.contexts[0], clip.token_embedding.weight[tokens])
    nn.init.ones_(model.backbone.language.contexts)
    torch.save({"model": model.state_dict()}, tmp_path / "trained.pth")
    DenseCLIPCheckpointer(again := tiny_model(*words), fresh_start=False).load(str(tmp_path / "trained.pth"))
    assert (again.backbone.language.contexts == 1).all()
