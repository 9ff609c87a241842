"""The commands: ``denseclip`` after an installation, ``tools/`` in a clone."""

import argparse
import sys
from pathlib import Path

import pytest

from denseclip_d2 import __version__, cli
from denseclip_d2.cli import COMMANDS, analyze_model, benchmark, config_path, demo, report
from denseclip_d2.cli.parser import add_config, command_parser, parse_args

ROOT = Path(__file__).parents[1]
CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"


def run(monkeypatch, *argv: str, module: str = "") -> None:
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    cli.main(module)


def said(monkeypatch, capsys, *argv: str, status: int = 0, module: str = "") -> str:
    """Return the output of a command that exits."""
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *argv, module=module)
    assert ended.value.code == status
    return "".join(capsys.readouterr())


def test_every_command_has_a_module_and_a_script():
    modules = {path.stem for path in (ROOT / "denseclip_d2/cli").glob("*.py")}
    assert modules - {"__init__", "__main__", "parser"} == set(COMMANDS.values())
    scripts = {path.stem: path for path in (ROOT / "tools").glob("*.py")}
    runner = scripts.pop("_command")
    assert scripts.keys() == set(COMMANDS.values())
    assert all(path.resolve() == runner for path in scripts.values())


def test_the_commands_are_listed_with_what_they_do(monkeypatch, capsys):
    listed = said(monkeypatch, capsys, "--help")
    for command in COMMANDS:
        assert f"\n  {command} " in listed
    assert "Train or evaluate a model of a config." in listed
    assert said(monkeypatch, capsys, "--version").strip() == __version__
    assert "invalid choice: 'trane'" in said(monkeypatch, capsys, "trane", status=2)
    assert "COMMAND" in said(monkeypatch, capsys, status=2)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_calls_a_command_as_it_was_called(command, monkeypatch, capsys):
    script = f"tools/{COMMANDS[command]}.py"
    installed = said(monkeypatch, capsys, command, "--help")
    assert installed.startswith(f"usage: denseclip {command} ")
    assert f"denseclip {command} " in installed.partition("\n")[2] and script not in installed
    assert script in said(monkeypatch, capsys, "--help", module=COMMANDS[command])


def test_help_gives_torchrun_a_module_where_there_is_no_script(monkeypatch, capsys):
    line = "torchrun --nproc-per-node 8 -m denseclip_d2.cli train --config-file F "
    assert line in said(monkeypatch, capsys, "train", "--help")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("pretrain", "--eval-only"), "denseclip pretrain: error: --weights is needed"),
        (("pretrain",), "error: --output is needed"),
        (("train",), "error: --config-file is needed"),
        (
            ("train", "--config-file", CONFIG, "--num-gpus", "99"),
            "error: --num-gpus 99, but this machine",
        ),
        (("train-lazy", "--config-file", CONFIG), "error: --config-file F.py is needed"),
        (("ablate", "--sweep", "r", "--output", "o", "--jobs", "0"), "--jobs: '0' is not a number from 1 on"),
    ],
)
def test_options_that_do_not_fit_end_with_the_usage(argv, error, monkeypatch, capsys):
    text = said(monkeypatch, capsys, *argv, status=2)
    assert text.startswith("usage: denseclip ") and error in text


def test_a_commands_status_and_its_errors_are_the_programs(monkeypatch):
    monkeypatch.setattr(report, "main", lambda args: 3)
    with pytest.raises(SystemExit, match="^3$"):
        run(monkeypatch, "report", "folder")
    monkeypatch.setattr(report, "main", lambda args: None)
    run(monkeypatch, "report", "folder")
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="^error: nothing is no OUTPUT_DIR"):
        run(monkeypatch, "report", "nothing")


def test_configs_of_the_package_go_by_their_names_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = Path(config_path(CONFIG))
    assert packaged.is_absolute() and packaged.read_bytes() == (ROOT / CONFIG).read_bytes()
    for name in ("configs/none.yaml", "Shapes/denseclip_retinanet_tiny.yaml", "hf://owner/repo/file"):
        assert config_path(name) == name
    (tmp_path / CONFIG).parent.mkdir(parents=True)
    (tmp_path / CONFIG).write_text("SEED: 1")
    assert config_path(CONFIG) == CONFIG


@pytest.mark.parametrize(
    ("command", "line", "values"),
    [
        (benchmark, "--only inference memory --threads 1 2", {"threads": [1, 2]}),
        (benchmark, "--candidates CLIP --sizes 64x96", {"sizes": [(64, 96)]}),
        (analyze_model, "--config-file F --tasks flop", {"tasks": ["flop"]}),
        (demo, "--zoo Z --output O --input a.png b.png", {"input": ["a.png", "b.png"]}),
    ],
)
@pytest.mark.parametrize("pairs", ["", "MODEL.DEVICE cpu", "MODEL.DEVICE cpu SOLVER.BASE_LR -1"])
def test_keys_follow_options_of_several_values(command, line, values, pairs):
    args = parse_args(command.build_parser(), [*line.split(), *pairs.split()])
    assert {name: getattr(args, name) for name in values} == values
    assert args.opts == pairs.split()


def test_a_config_file_is_required_unless_it_has_a_default():
    def parse(argv, **config_file) -> argparse.Namespace:
        parser = command_parser("Do it.")
        add_config(parser, **config_file)
        return parser.parse_args(argv)

    with pytest.raises(SystemExit):
        parse([])
    assert parse(["SEED", "1"], default="a.yaml") == argparse.Namespace(
        config_file="a.yaml", opts=["SEED", "1"]
    )
