import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_script

from denseclip_d2.ablation import finished, read_sweep, run_all, write_table
from denseclip_d2.ablation.runs import all_runs
from denseclip_d2.shapes.dataset import generate_shapes

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"

# Replaces tools/train_net.py: count calls, fail the first call of seed 1, reach 10 * TAU + seed.
TRAINER = """
import json, pathlib, sys
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
assert sys.argv[1] == "--config-file" and sys.argv[3] == "--resume"
folder, seed = pathlib.Path(options["OUTPUT_DIR"]), int(options["SEED"])
with (folder / "calls").open("a") as calls:
    calls.write("x")
reached = 10 * float(options.get("MODEL.DENSECLIP.SCORE_MAP.TAU", 0.1)) + seed
lines = [{"iteration": 1, "total_loss": 3.0}]
if seed != 1 or (folder / "calls").read_text() != "x":
    lines += [{"iteration": 2, "sem_seg/mIoU": reached}, {"iteration": 3, "total_loss": 1.0}]
(folder / "metrics.json").write_text("".join(json.dumps(line) + chr(10) for line in lines))
sys.exit(seed == 1 and len(lines) == 1)
"""


@pytest.fixture
def train(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    return [sys.executable, str(script)]


def write_rows(path, text):
    path.write_text(text.replace("CONFIG", str(CONFIG)))
    return path


TWO_ROWS = """
title: Temperature
config: CONFIG
metrics: [sem_seg/mIoU]
seeds: 2
set: {SOLVER.MAX_ITER: 2, MODEL.DENSECLIP.SCORE_MAP.TAU: 0.1}
rows:
  - name: warm (as it is)
  - name: hot
    seeds: [0, 1, 2]
    against: warm (as it is)
    set: {MODEL.DENSECLIP.SCORE_MAP.TAU: 0.5, INPUT.MIN_SIZE_TRAIN: [96]}
"""


@pytest.fixture
def ablation(tmp_path):
    return read_sweep(write_rows(tmp_path / "rows.yaml", TWO_ROWS))


def test_rows_have_their_own_values_over_those_of_all(ablation):
    warm, hot = ablation.rows
    assert (warm.folder, warm.seeds, hot.seeds) == ("warm-as-it-is", (0, 1), (0, 1, 2))
    assert warm.options == ("SOLVER.MAX_ITER", "2", "MODEL.DENSECLIP.SCORE_MAP.TAU", "0.1")
    options = dict(zip(hot.options[::2], hot.options[1::2], strict=True))
    assert options["MODEL.DENSECLIP.SCORE_MAP.TAU"] == "0.5"
    assert options["INPUT.MIN_SIZE_TRAIN"] == "[96]"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_run_does_not_stop_the_others_and_is_all_that_is_run_again(ablation, train, tmp_path, jobs):
    output = tmp_path / "out"
    failed = run_all(ablation, output, train, jobs=jobs)
    assert sorted((run.row.name, run.seed) for run in failed) == [("hot", 1), ("warm (as it is)", 1)]
    assert "! status 1" in (failed[0].folder / "output.txt").read_text()
    assert len(finished(ablation, output)) == 3
    assert run_all(ablation, output, train, jobs=jobs) == []
    calls = {run: (run.folder / "calls").read_text() for run in all_runs(ablation, output)}
    assert all(made == ("xx" if run.seed == 1 else "x") for run, made in calls.items())
    results = finished(ablation, output)
    assert {(r.row.name, r.seed): v["sem_seg/mIoU"] for r, v in results.items()} == {
        ("warm (as it is)", 0): 1.0, ("warm (as it is)", 1): 2.0,
        ("hot", 0): 5.0, ("hot", 1): 6.0, ("hot", 2): 7.0,
    }  # fmt: skip
    assert all((v["seconds"] is None) == (run.seed == 1) for run, v in results.items())


def test_the_table_has_means_spreads_and_what_is_missing(ablation, train, tmp_path):
    output = tmp_path / "out"
    run_all(ablation, output, train)
    write_table(ablation, finished(ablation, output), output, note="By hand.")
    text = (output / "table.md").read_text()
    assert "| warm (as it is) | 1 of 2 | 1.0 |" in text
    assert "| hot | 2 of 3 | 6.0 ± 1.4 (+4.0) |" in text  # of seed 0, which both rows have
    assert text.endswith("\nBy hand.\n")
    with (output / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["row"], r["seed"], r["sem_seg/mIoU"]) for r in rows] == [
        ("warm (as it is)", "0", "1.0"), ("hot", "0", "5.0"), ("hot", "2", "7.0"),
    ]  # fmt: skip


def test_results_of_other_options_are_not_taken_for_these(ablation, train, tmp_path):
    run_all(ablation, tmp_path / "out", train)
    other = read_sweep(write_rows(tmp_path / "other.yaml", TWO_ROWS.replace("MAX_ITER: 2", "MAX_ITER: 4")))
    with pytest.raises(ValueError, match=r"has a run of other options.*choose another --output"):
        run_all(other, tmp_path / "out", train)


def test_results_under_a_keys_old_name_are_taken(train, tmp_path):
    texts = [TWO_ROWS.replace("MAX_ITER: 2", f"{key}: 1") for key in ("KEEP_CHECKPOINTS", "MAX_TO_KEEP")]
    old, new = (read_sweep(write_rows(tmp_path / "rows.yaml", text)) for text in texts)
    run_all(old, tmp_path / "out", train)
    assert [*finished(new, tmp_path / "out").values()] == [*finished(old, tmp_path / "out").values()] != []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("SCORE_MAP.TAU: 0.5", "SCORE_MAP.TAO: 0.5", r"row 'hot': .*SCORE_MAP\.TAO"),
        ("against: warm (as it is)", "against: hot", r"row 'hot' is against 'hot', which is no other row"),
        ("TAU: 0.5", "TAU: -1.0", r"row 'hot': .*TAU"),
        ("SCORE_MAP.TAU: 0.5", "PROMPT.MODE: pre", "row 'hot': .*learns no contexts"),
        ("set: {MODEL", "sat: {MODEL", "row 'hot' has 'sat'"),
        ("INPUT.MIN_SIZE_TRAIN: [96]", "SEED: 4", "sets SEED, which differs for each run"),
        ("name: hot", "name: Warm, as it is", "another row has the name"),
        ("name: hot", "title: hot", "has 'title'"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "one twice"),
        ("seeds: 2", "seeds: none", "seeds = 'none'"),
        ("metrics: [sem_seg/mIoU]", "metrics: sem_seg/mIoU", "metrics must be a list"),
        ("title: Temperature", "", "has no title"),
        ("config: CONFIG", "", "has no config"),
        ("rows:", "rows: [", "is not YAML"),
    ],
)
def test_bad_rows_are_refused_by_name(before, after, message, tmp_path):
    assert before in TWO_ROWS
    path = write_rows(tmp_path / "rows.yaml", TWO_ROWS.replace(before, after))
    with pytest.raises(ValueError, match=message) as raised:
        read_sweep(path)
    assert str(path) in str(raised.value)


def test_the_tool_trains_and_refuses(tmp_path):
    generate_shapes(tmp_path / "shapes", num_train=4, num_val=2)
    rows = write_rows(
        tmp_path / "rows.yaml",
        """
title: One iteration
config: CONFIG
metrics: [sem_seg/mIoU, sem_seg/pACC]
set:
  SOLVER.MAX_ITER: 1
  SOLVER.WARMUP_ITERS: 0
  SOLVER.IMS_PER_BATCH: 2
  DATALOADER.NUM_WORKERS: 0
rows: [{name: DenseCLIP}]
""",
    )

    def ablate(output: str) -> subprocess.CompletedProcess:
        options = "--sweep", rows, "--output", tmp_path / output
        return run_script("tools/ablate.py", *options, DETECTRON2_DATASETS=tmp_path)

    ended = ablate("out")
    assert ended.returncode == 0, ended.stderr + (tmp_path / "out/denseclip/seed0/output.txt").read_text()
    assert "| DenseCLIP | 1 |" in ended.stdout
    result = json.loads((tmp_path / "out/denseclip/seed0/result.json").read_text())
    assert set(result["metrics"]) == {"sem_seg/mIoU", "sem_seg/pACC", "seconds"}
    rows.write_text(rows.read_text().replace("SOLVER.MAX_ITER", "SOLVER.MAX_ITERS"))
    ended = ablate("other")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: {rows}: row 'DenseCLIP': ")
    assert "SOLVER.MAX_ITERS" in ended.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_tables_can_be_read(path):
    assert len(read_sweep(path).rows) > 1
