"""Train rows of config overrides for several seeds each, and write the table of the results.

tools/ablate.py --rows configs/ablations/shapes_prompting.yaml --output output/prompting
tools/ablate.py --rows F --output D --jobs 2                     # two runs at once
tools/ablate.py --rows F --output D --jobs 4 --gpus-per-job 2    # each on GPUs of its own
tools/ablate.py --rows F --output D --table-only                 # of what has ended so far

Killed, the same command goes on. DIR/table.csv, table.md and table.png are written after each run.
"""

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path

import torch

from ..ablation import finished, read_ablation, run_all, write_table
from ..engine.setup import check_writable
from .parser import command_parser, positive


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=Path, required=True, metavar="FILE", help="YAML; see configs/ablations/")
    add("--output", type=Path, required=True, metavar="DIR", help="for the runs and the table")
    add("--jobs", type=positive, default=1, help="runs at once (%(default)s)")
    add("--gpus-per-job", type=int, default=0, metavar="N", help="of the visible ones (default: as they are)")
    add("--table-only", action="store_true", help="train nothing")
    return parser


def device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} processor cores, no GPU"


def main(args: argparse.Namespace) -> int:
    if not 0 <= args.jobs * args.gpus_per_job <= torch.cuda.device_count():
        wanted = f"--jobs {args.jobs} and --gpus-per-job {args.gpus_per_job}"
        raise argparse.ArgumentError(None, f"{wanted}, but here are {torch.cuda.device_count()} GPUs.")
    ablation = read_ablation(args.rows)
    check_writable(str(args.output), "--output")
    note = (
        f"`tools/ablate.py --rows {shlex.quote(str(args.rows))} --output {shlex.quote(str(args.output))}`, "
        f"{datetime.date.today()}, {device()}, torch {torch.__version__}. Mean ± standard deviation."
    )

    def write() -> None:
        write_table(ablation, finished(ablation, args.output), args.output, note)

    failed = []
    if not args.table_only:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # runs import what this one does
        train = [sys.executable, "-m", "denseclip_d2.cli", "train"]
        if args.gpus_per_job > 1:
            train += ["--num-gpus", str(args.gpus_per_job)]
        failed = run_all(
            ablation, args.output, train, jobs=args.jobs, gpus_per_job=args.gpus_per_job, after_each=write
        )
    write()
    print((args.output / "table.md").read_text(encoding="utf-8"))
    for run in failed:
        print(f"failed: {run.row.name}, seed {run.seed}; see {run.folder / 'output.txt'}", file=sys.stderr)
    return 1 if failed else 0
