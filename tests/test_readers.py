import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import CLIP, save_openai_archive, tiny_model
from torch import nn

from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.checkpoint.readers import read_weights

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


class Ran(Exception):
    """Code in a file was run."""


def run():
    raise Ran


class Code:
    def __reduce__(self):
        return run, ()


@pytest.fixture
def loads(tmp_path):
    """Read what a function writes to a path, under every extension, since none is to matter."""

    def read(write, suffixes=(".pth", ".safetensors", ".pkl", "")) -> dict:
        for suffix in suffixes:
            write(tmp_path / f"file{suffix}")
            checkpoint = read_weights(str(tmp_path / f"file{suffix}"))
        return checkpoint

    return read


def write_pickle(data, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(data, file)


def assert_weights(checkpoint: dict) -> None:
    assert set(checkpoint["model"]) == set(WEIGHTS)
    assert all(torch.equal(checkpoint["model"][k], v) for k, v in WEIGHTS.items())
    assert checkpoint["model"]["a"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_are_told_apart_by_content_and_give_float32(loads, dtype):
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in WEIGHTS.items()}
    assert_weights(loads(lambda path: save_file(weights, path)))
    assert_weights(loads(lambda path: torch.save(weights, path)))
    assert_weights(loads(lambda path: torch.save(weights, path, _use_new_zipfile_serialization=False)))
    module = nn.Module()
    for name, tensor in weights.items():
        module.register_buffer(name, tensor)
    assert_weights(loads(lambda path: torch.jit.save(torch.jit.script(module), path)))


def test_weights_come_out_of_what_trainers_wrap_around_them(loads):
    wrapped = {f"module.{k}": v for k, v in WEIGHTS.items()}
    meta = {"iter": 12, "score": np.float64(0.5), "lr": np.ones(2, np.float32), "CLASSES": ("a", "b")}
    assert_weights(loads(lambda path: torch.save({"meta": meta, "state_dict": wrapped}, path)))
    assert_weights(loads(lambda path: torch.save({"model_state": WEIGHTS, "epoch": 1}, path)))
    ours = loads(lambda path: torch.save({"model": WEIGHTS, "iteration": 7}, path))
    assert_weights(ours)
    assert ours["iteration"] == 7


def test_detectron2s_pickles_of_arrays_are_read(loads):
    arrays = {k: v.numpy() for k, v in WEIGHTS.items()}
    zoo = loads(lambda path: write_pickle({"model": arrays, "__author__": "somebody"}, path))
    assert_weights(zoo)
    blobs = {"blobs": {**arrays, "a_momentum": arrays["a"]}}
    caffe2 = loads(lambda path: write_pickle(blobs, path))
    assert_weights(caffe2)
    assert caffe2["matching_heuristics"]


class CodeOnLoading(nn.Module):
    """A TorchScript archive of it writes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.register_buffer("a", torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.a, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.a, self.path, self.training = state
        torch.save(self.a, self.path)

    def forward(self, x):
        return x


@pytest.mark.parametrize("wrap", [lambda code: {"model": WEIGHTS, "x": code}, lambda code: code])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, wrap):
    torch.save(wrap(Code()), tmp_path / "torch.pth")
    torch.save(wrap(Code()), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    write_pickle(wrap(Code()), tmp_path / "plain.pkl")
    for name in ("torch.pth", "old.pth", "plain.pkl"):
        with pytest.raises(ValueError, match=rf"{name}' is not opened: .*can run any code"):
            read_weights(str(tmp_path / name))


def test_code_in_a_torchscript_archive_is_refused_and_not_run(tmp_path):
    module = torch.jit.script(CodeOnLoading(str(tmp_path / "written")))
    torch.jit.save(module, str(tmp_path / "archive.pt"))
    with pytest.raises(ValueError, match=r"archive.pt' is not opened: .*has code that runs on loading"):
        read_weights(str(tmp_path / "archive.pt"))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "array", [np.array([None, 1]), np.array(["a"]), np.array([(1, 2)], "i4,i4"), np.array(b"x")]
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    """Numpy would take bytes of the file for addresses."""
    write_pickle({"a": array}, tmp_path / "x.pkl")
    torch.save({"a": array}, tmp_path / "x.pth")
    for name in ("x.pkl", "x.pth"):
        with pytest.raises(ValueError, match="is not opened|cannot be read as weights"):
            read_weights(str(tmp_path / name))


def test_arrays_keep_their_order_and_type(loads):
    arrays = {
        "big": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "int": np.arange(3, dtype=np.int64), "empty": np.zeros((0, 2), np.float32),
    }  # fmt: skip
    read = loads(lambda path: write_pickle(arrays, path))["model"]
    for name, array in arrays.items():
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert torch.equal(read[name], expected.float() if expected.is_floating_point() else expected)


@pytest.mark.parametrize(
    "data", [3, None, "text", [1], {1: WEIGHTS["a"]}, {"model": {1: WEIGHTS["a"]}}, {"model": {"a": WEIGHTS}}]
)
def test_anything_else_is_one_clear_error(tmp_path, data):
    torch.save(data, tmp_path / "x.pth")
    write_pickle({"blobs": [1]} if isinstance(data, dict) else data, tmp_path / "x.pkl")
    for name in ("x.pth", "x.pkl"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read as weights"):
            read_weights(str(tmp_path / name))


def test_a_file_cut_short_is_said_to_be(tmp_path):
    torch.save(WEIGHTS, tmp_path / "torch.pth")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, tmp_path / "safe.safetensors")
    write_pickle({k: v.numpy() for k, v in WEIGHTS.items()}, tmp_path / "plain.pkl")
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for size in (0, 1, 9, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="cannot be read as weights|is not opened: it is damaged"):
                read_weights(str(path))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>log in</html>", "a web page"),
        (b"GIF89a...", "no format begins with"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, content, hint):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=hint):
        read_weights(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("data", [{}, {"state_dict": {}}, {"epoch": 3}, [1, 2]])
def test_a_file_without_weights_is_refused(tmp_path, data):
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="weights"):
        read_weights(str(tmp_path / "x.pth"))


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        DenseCLIPCheckpointer(tiny_model()).load(str(tmp_path))


def test_a_small_clip_loads_the_same_from_every_kind_of_file(tmp_path):
    """OpenAI's archive in half precision, its state dict, open_clip's and safetensors."""
    torch.manual_seed(7)
    clip = open_clip.create_model(CLIP).half().float()  # values that half precision can hold
    state = clip.state_dict()
    openai = {k: torch.tensor(1) for k in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state, tmp_path / "open_clip.pt")
    torch.save({**{k: v.half() for k, v in state.items()}, **openai}, tmp_path / "openai.pt")
    save_file(state, tmp_path / "clip.safetensors")
    save_openai_archive(clip, tmp_path / "archive.pt")
    states = []
    for name in ("open_clip.pt", "openai.pt", "clip.safetensors", "archive.pt"):
        torch.manual_seed(0)
        model = tiny_model()
        DenseCLIPCheckpointer(model).load(str(tmp_path / name))
        states.append(model.state_dict())
    for other in states[1:]:
        for name, tensor in states[0].items():
            assert torch.equal(tensor, other[name]), name


def test_openais_state_dict_is_refused_where_the_model_has_plain_gelu(tmp_path):
    state = open_clip.create_model(CLIP).state_dict()
    numbers = {k: torch.tensor(1) for k in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**state, **numbers}, tmp_path / "openai.pt")
    config = {**open_clip.get_model_config(CLIP), "quick_gelu": False}
    (tmp_path / "RN-shapes-gelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = tiny_model("MODEL.DENSECLIP.CLIP_MODEL", "RN-shapes-gelu")
    with pytest.raises(ValueError, match="trained with QuickGELU, and the model has GELU"):
        DenseCLIPCheckpointer(model).load(str(tmp_path / "openai.pt"))


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"model": {"head.cls_score.bias": torch.ones(162)}}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="Missing"):
        DenseCLIPCheckpointer(model).load(str(tmp_path / "part.pth"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_table_says_what_became_of_every_tensor(tmp_path, caplog):
    clip = open_clip.create_model(CLIP)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = tiny_model("MODEL.DENSECLIP.VISUAL.RESOLUTION", "320")
    with caplog.at_level("INFO", logger="fvcore"):
        DenseCLIPCheckpointer(model).load(str(tmp_path / "clip.pt"))
    table = next(r.message for r in caplog.records if r.message.startswith("Weights"))
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}
    visual, language = model.backbone.visual.state_dict(), model.backbone.language.state_dict()
    text = sum(name.startswith("text_encoder.") for name in language)
    assert rows["backbone.visual"] == [str(len(visual) - 1), "1"]
    assert rows["backbone.language"] == [str(text), str(len(language) - text)]
    assert rows["all"][0] == str(len(visual) - 1 + text)
    assert "attnpool.positional_embedding: from 9 to 100 positions" in table


def test_weights_left_over_are_refused_by_name(tmp_path):
    model = tiny_model()
    state = {**model.state_dict(), "backbone.language.second_decoder.weight": torch.ones(2)}
    torch.save({"model": state}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"Left over \(1\): backbone.language.second_decoder.weight"):
        DenseCLIPCheckpointer(tiny_model()).load(str(tmp_path / "more.pth"))
    DenseCLIPCheckpointer(tiny_model(), allow_partial=True).load(str(tmp_path / "more.pth"))


def test_names_can_be_matched_by_their_ends(tmp_path):
    """Detectron2's ?matching_heuristics=True; any other query is an error."""
    model = tiny_model()
    state = {k.partition(".")[2]: v + 1 for k, v in model.state_dict().items() if v.is_floating_point()}
    torch.save(state, tmp_path / "x.pth")
    DenseCLIPCheckpointer(model).load(f"{tmp_path}/x.pth?matching_heuristics=True")
    assert torch.equal(model.head.cls_score.bias, state["cls_score.bias"])
    with pytest.raises(ValueError, match="nothing but matching_heuristics=True is understood.*curl"):
        DenseCLIPCheckpointer(model).load("https://example.org/f/1/?dl=1")
