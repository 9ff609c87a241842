"""Commands in the documentation run."""

import json
import re
from ast import literal_eval
from functools import reduce
from html import unescape
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from test_engine import final_metrics

from denseclip_d2.config import add_denseclip_config
from denseclip_d2.config.checks import leaves
from denseclip_d2.config.rules import rule_of

PAGE = Path("docs/what_fits.md")


def code(number: int) -> str:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[number]


def test_a_backbone_of_ones_own_takes_thirty_lines(small_shapes, tmp_path):
    block = code(0)
    assert len(block.splitlines()) <= 30
    train, val = small_shapes[1:]
    few = [
        "OUTPUT_DIR", str(tmp_path / "mine"), "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2",
        "DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)", "DATALOADER.NUM_WORKERS", "0",
    ]  # fmt: skip
    try:
        exec(block.replace("pixels + backbone", f"pixels + backbone + {few}"), {"__name__": "__main__"})
    finally:
        BACKBONE_REGISTRY._obj_map.pop("Convolutions", None)
    assert final_metrics(tmp_path / "mine")["loss_pixel_text"] > 0


def test_a_system_of_ones_own_takes_thirty_lines():
    block, names = code(1), {"__name__": "__main__"}
    assert len(block.splitlines()) <= 30
    try:
        exec(block, names)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("DenseCLIPPyramids", None)
    instances = Instances((64, 64), gt_boxes=Boxes([[8, 8, 40, 40]]), gt_classes=torch.tensor([3]))
    losses = names["model"]([{"image": torch.zeros(3, 64, 64), "instances": instances}])
    assert set(losses) == {"loss_size", "loss_pixel_text"}
    losses["loss_pixel_text"].backward()
    assert names["model"].backbone.language.contexts.grad.any()


def test_the_page_of_config_keys_has_every_key_with_its_default_and_rule(monkeypatch):
    monkeypatch.syspath_prepend("docs/site")
    from config_keys import config_keys_page

    section, rows = "", {}
    for line in config_keys_page().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif match := re.fullmatch(r"\| `(\w+)` \| `(.+?)` \| (.+?) \| (.*) \|", line):
            rows[f"{section}.{match[1]}"] = unescape(match[2]).replace("\\", ""), unescape(match[3])
    cfg = get_cfg()
    theirs = dict(leaves(cfg))
    add_denseclip_config(cfg)
    assert rows.keys() == dict(leaves(cfg)).keys() - theirs.keys()
    for key, (default, words) in rows.items():
        value = reduce(getattr, key.split("."), cfg)
        assert (literal_eval(default), words) == (value, rule_of(key, value).words), key


def test_the_notebook_runs_and_finds_what_is_in_its_image(capsys):
    cells = json.loads(Path("examples/predict.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), names)
    class_names, instances = names["class_names"], names["outputs"]["instances"]
    drawn = sorted(instance.category for instance in names["objects"])
    assert sorted(instances.pred_classes[instances.scores > 0.4].tolist()) == drawn
    printed = capsys.readouterr().out
    assert len(drawn) > 3 and all(f"{class_names[category]}: " in printed for category in drawn)
    assert {*drawn} < {*names["labels"].unique().tolist()}
    assert names["score_maps"].shape == (len({*drawn}), 160, 160)
