"""Train rows of config overrides for several seeds each, and write the table of the results.

tools/ablate.py --sweep configs/ablations/shapes_prompting.yaml --output output/prompting
tools/ablate.py --sweep F --output D --jobs 2                     # two runs at once, each with half the cores
tools/ablate.py --sweep F --output D --num-gpus 8                 # each run on 8 GPUs
tools/ablate.py --sweep F --output D --table-only                 # of the runs that are finished

After a kill, the same command continues. It writes DIR/table.csv and table.md after each run. Do not start it
twice at once with the same DIR.
"""

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path

import torch

from ..ablation import finished, read_sweep, run_all, write_table
from ..engine.setup import check_writable
from .parser import command_parser, positive


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--sweep", type=Path, required=True, metavar="FILE", help="YAML; see configs/ablations/")
    add("--output", type=Path, required=True, metavar="DIR", help="for the runs and the table")
    add("--jobs", type=positive, default=1, help="runs at once (%(default)s)")
    add("--num-gpus", type=positive, default=1, metavar="N", help="of each run (%(default)s)")
    add("--table-only", action="store_true", help="train nothing")
    return parser


def main(args: argparse.Namespace) -> int:
    ablation = read_sweep(args.sweep)
    check_writable(str(args.output), "--output")
    cores = os.cpu_count() or 1
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cores} processor cores"
    note = (
        f"`tools/ablate.py --sweep {shlex.quote(str(args.sweep))} --output {shlex.quote(str(args.output))}`, "
        f"{datetime.date.today()}, {device}, torch {torch.__version__}. Mean ± standard deviation."
    )

    def write() -> None:
        write_table(ablation, finished(ablation, args.output), args.output, note)

    failed = []
    if not args.table_only:
        if args.jobs > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // args.jobs, 1)))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # runs import what this one does
        train = [sys.executable, "-m", "denseclip_d2.cli", "train", "--num-gpus", str(args.num_gpus)]
        failed = run_all(ablation, args.output, train, jobs=args.jobs, after_each=write)
    write()
    print((args.output / "table.md").read_text(encoding="utf-8"))
    for run in failed:
        print(f"failed: {run.row.name}, seed {run.seed}; see {run.folder / 'output.txt'}", file=sys.stderr)
    return 1 if failed else 0
