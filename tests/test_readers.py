import json
import pickle
from argparse import Namespace
from collections import defaultdict, deque
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from detectron2.config import get_cfg
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_checkpoint import CLIP, save_openai_archive, tiny_model
from torch import nn

from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.checkpoint.readers import read_weights

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


class Ran(Exception):
    """Raised by code in a file that runs when it is loaded."""


def run():
    raise Ran


class Code:
    def __reduce__(self):
        return run, ()


@pytest.fixture
def loads(tmp_path):
    """Read a file under every extension, because the extension must not matter."""

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


KEYS = ("model_state_dict", "net", "weights", "ema", "state_dict_ema", "student", "whatever")


@pytest.mark.parametrize("key", KEYS)
def test_the_only_weights_of_a_file_are_read_under_any_key(loads, key):
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    beside = {"epoch": 3, "optimizer": optimizer.state_dict(), "optim_ema": {"a": torch.ones(2)}}
    read = loads(lambda path: torch.save({key: WEIGHTS, **beside}, path))
    assert_weights(read)
    assert "optimizer" not in read  # another trainer's checkpoint: no training state to resume
    assert_weights(loads(lambda path: torch.save({**beside, key: {"module": WEIGHTS, "updates": 7}}, path)))
    arrays = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    pickled = loads(lambda path: write_pickle({key: arrays, "epoch": 3}, path))
    assert_weights(pickled)
    assert "matching_heuristics" not in pickled


@pytest.mark.parametrize(
    ("model", "average"), [("model", "ema"), ("state_dict", "ema_state_dict"), ("student", "teacher")]
)
def test_of_a_model_and_its_average_the_model_is_read_and_the_log_says_so(tmp_path, caplog, model, average):
    other = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    for average_holds in (other, {"module": other, "updates": 7}):
        caplog.clear()
        torch.save({average: average_holds, model: WEIGHTS}, tmp_path / "x.pth")
        with caplog.at_level("WARNING"):
            assert_weights(read_weights(str(tmp_path / "x.pth")))
        assert f"also has weights under '{average}" in caplog.text


def test_several_models_in_a_file_are_told_apart_by_what_fits(tmp_path):
    generator, discriminator = {"g.weight": torch.ones(2)}, {"d.weight": torch.ones(3)}
    path = str(tmp_path / "gan.pth")
    torch.save({"generator": generator, "discriminator": discriminator}, path)
    with pytest.raises(ValueError, match="several sets of weights, under 'generator', 'discriminator'"):
        read_weights(path)
    assert list(read_weights(path, lambda weights: "d.weight" in weights)["model"]) == ["d.weight"]


def test_a_dictionary_inside_itself_is_read_once(tmp_path):
    content: dict = {"state_dict": WEIGHTS}
    content |= {f"copy {i}": content for i in range(1000)}
    torch.save(content, tmp_path / "x.pth")
    assert_weights(read_weights(str(tmp_path / "x.pth")))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_names_of_pytorchs_wrappers_are_removed(loads, wrapper):
    wrapped = {wrapper + name: tensor for name, tensor in WEIGHTS.items()}
    assert_weights(loads(lambda path: torch.save(wrapped, path)))
    assert_weights(loads(lambda path: save_file(wrapped, path)))


def test_a_part_that_was_compiled_or_sharded_has_its_own_names(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = ["0.weight", "0.bias", "1._fsdp_wrapped_module.weight", "1._orig_mod.bias"]
    torch.save(dict(zip(names, model.state_dict().values(), strict=True)), tmp_path / "x.pth")
    assert list(read_weights(str(tmp_path / "x.pth"))["model"]) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]
    both = {"a.weight": torch.zeros(1), "a._orig_mod.weight": torch.ones(1)}
    torch.save(both, tmp_path / "both.pth")
    assert read_weights(str(tmp_path / "both.pth"))["model"] == both


def test_detectron2s_pickles_of_arrays_are_read(loads):
    arrays = {k: v.numpy() for k, v in WEIGHTS.items()}
    zoo = loads(lambda path: write_pickle({"model": arrays, "__author__": "somebody"}, path))
    assert_weights(zoo)
    blobs = {"blobs": {**arrays, "a_momentum": arrays["a"]}}
    caffe2 = loads(lambda path: write_pickle(blobs, path))
    assert_weights(caffe2)
    assert caffe2["matching_heuristics"]


def test_what_trainers_keep_beside_weights_is_left_unread(loads):
    """Namespaces, paths, configs of omegaconf and yacs. No code of these libraries runs, and none is kept."""
    beside = {
        "args": Namespace(lr=0.1, nested=Namespace(x=1)), "path": Path("a/b"), "when": datetime.now(UTC),
        "counts": defaultdict(list, {"a": [1]}), "recent": deque([1, 2], maxlen=3), "word": np.str_("x"),
        "cfg": get_cfg(), "hyper_parameters": OmegaConf.create({"a": {"b": [1, 2.5, None]}, "c": "x"}),
        "method": Namespace(f=WEIGHTS["a"].numpy().max),
    }  # fmt: skip
    for key, value in beside.items():
        assert_weights(loads(lambda path, x={key: value}: torch.save({"state_dict": WEIGHTS, **x}, path)))
    old = {"_use_new_zipfile_serialization": False}
    assert_weights(loads(lambda path: torch.save({"model": WEIGHTS, "args": beside["args"]}, path, **old)))


class CodeOnLoading(nn.Module):
    """Its TorchScript archive writes a file when it is loaded."""

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
        with pytest.raises(ValueError, match=rf"{name}' is not opened: .*can run any code") as refused:
            read_weights(str(tmp_path / name))
        said = str(refused.value)
        first_of_pickle = ("torch._utils.",) if name == "plain.pkl" else ()  # how it builds a tensor
        assert said.partition("it contains ")[2].startswith((f"{run.__module__}.run. ", *first_of_pickle))
        assert "\x1b" not in said
        assert "\n" not in said


def test_a_whole_model_is_refused_with_its_classes_and_the_way_out(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"torch.nn.modules.container.Sequential.*model.state_dict\(\)"):
        read_weights(str(tmp_path / "x.pth"))


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
    """Numpy would use bytes of the file as addresses."""
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
    "data",
    [3, None, "text", [1], {1: WEIGHTS["a"]}, {"model": {1: WEIGHTS["a"]}}, {"model": {"a": [WEIGHTS["a"]]}}],
)
def test_anything_else_is_one_clear_error(tmp_path, data):
    torch.save(data, tmp_path / "x.pth")
    write_pickle({"blobs": [1]} if isinstance(data, dict) else data, tmp_path / "x.pkl")
    for name in ("x.pth", "x.pkl"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read as weights") as refused:
            read_weights(str(tmp_path / name))
        assert "downloaded" not in str(refused.value)  # the file is complete


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
        (b'{"metadata": {"total_size": 1}}', "JSON text"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, content, hint):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=hint) as refused:
        read_weights(str(tmp_path / "weights.pth"))
    assert "bytes may not be all" not in str(refused.value)


@pytest.mark.parametrize("data", [{}, {"state_dict": {}}, {"epoch": 3}, [1, 2]])
def test_a_file_without_weights_is_refused(tmp_path, data):
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="weights"):
        read_weights(str(tmp_path / "x.pth"))


def test_a_folder_is_no_file_of_weights(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=rf"it is a folder.*such as {tmp_path}/model.safetensors\.$"):
        DenseCLIPCheckpointer(tiny_model()).load(str(tmp_path))


def test_a_small_clip_loads_the_same_from_every_kind_of_file(tmp_path):
    """OpenAI's archive in half precision, its state dict, open_clip's file and safetensors."""
    torch.manual_seed(7)
    clip = open_clip.create_model(CLIP).half().float()  # values that are exact in half precision
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
    config = {**open_clip.get_model_config(CLIP), "quick_gelu": False}
    config["vision_cfg"] = {**config["vision_cfg"], "layers": [1, 1, 1, 1]}  # no other test's weights fit
    (tmp_path / "RN-short-gelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    state = open_clip.create_model("RN-short-gelu").state_dict()
    numbers = {k: torch.tensor(1) for k in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**state, **numbers}, tmp_path / "openai.pt")
    model = tiny_model("MODEL.DENSECLIP.CLIP_MODEL", "RN-short-gelu")
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
    """Detectron2's ?matching_heuristics=True. Any other query is an error."""
    model = tiny_model()
    state = {k.partition(".")[2]: v + 1 for k, v in model.state_dict().items() if v.is_floating_point()}
    torch.save(state, tmp_path / "x.pth")
    DenseCLIPCheckpointer(model).load(f"{tmp_path}/x.pth?matching_heuristics=True")
    assert torch.equal(model.head.cls_score.bias, state["cls_score.bias"])
    with pytest.raises(ValueError, match="only matching_heuristics=True can follow.*curl"):
        DenseCLIPCheckpointer(model).load("https://example.org/f/1/?dl=1")
