import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from .errors import format_error

logger = logging.getLogger(__name__)

Main = Callable[[argparse.Namespace], object]


def run(main: Main, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in the processes of torchrun, or else in those of Detectron2's launcher.

    With GPUs, the processes communicate by NCCL, and each has the GPU of its local rank. Else they use gloo.

    Args:
        main: a function that can be pickled by name, for Detectron2's launcher.
        args: of ``detectron2.engine.default_argument_parser``.

    Raises:
        ValueError: the arguments, torchrun's environment and the machine do not fit together.
    """
    if "LOCAL_RANK" in os.environ:
        try:
            # Without `record`, torchrun's last lines would not name the error.
            record(_run_under_torchrun)(main, args)
        except Exception as error:
            _tell_torchrun(format_error(error))
            raise
        return
    _check_machines(args)
    launch(
        _run_and_leave,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(main, args),
    )


def _run_under_torchrun(main: Main, args: argparse.Namespace) -> None:
    missing = [key for key in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if key not in os.environ]
    if missing:
        raise ValueError(f"LOCAL_RANK is set but {', '.join(missing)} not. Use torchrun.")
    if args.num_gpus != 1 or args.num_machines != 1:
        raise ValueError(
            "--num-gpus and --num-machines start processes, but torchrun has started them. Leave both out, "
            "and give torchrun --nproc-per-node and --nnodes."
        )
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        if local_size > torch.cuda.device_count():
            raise ValueError(
                f"torchrun --nproc-per-node {local_size}, but this machine has "
                f"{torch.cuda.device_count()} GPUs. Start one process for each GPU."
            )
        torch.cuda.set_device(local_rank)
    # NCCL's own 10 minutes may be over before the first process has checked every image of COCO.
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    may_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    if may_restart and not (args.resume or args.eval_only) and comm.is_main_process():
        logger.warning("torchrun may restart this run. Without --resume, the run would then begin anew.")
    _run_and_leave(main, args)


def _tell_torchrun(line: str) -> None:
    """Let torchrun end with this line, if it is not empty, in place of `record`'s traceback."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if line and file:
        about = {"py_callstack": f"error: {line}", "timestamp": str(int(time.time()))}
        content = {"message": {"message": line, "extraInfo": about}}
        Path(file).write_text(json.dumps(content), encoding="utf-8")


def _run_and_leave(main: Main, args: argparse.Namespace) -> None:
    comm.synchronize()
    try:
        main(args)
    except Exception as error:
        if format_error(error):
            # For log.txt. Other processes learn the line of the error alone.
            logger.debug("Ended by an error:", exc_info=error)
        raise
    # Not in a `finally`: after an error, this call would wait for processes that are still at work.
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_machines(args: argparse.Namespace) -> None:
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}. "
            f"Machines are counted from 0 to {args.num_machines - 1}."
        )
    this_machine = ("auto", default_argument_parser().get_default("dist_url"))
    if args.num_machines > 1 and args.dist_url in this_machine:
        raise ValueError(
            f"--num-machines {args.num_machines} needs the same --dist-url tcp://ADDRESS:PORT everywhere. "
            "Give an address of machine 0 that the other machines reach, and a free port of machine 0."
        )
