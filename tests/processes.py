"""Run scripts in processes of their own, which do not import the libraries each time.

A server imports the libraries once and forks itself for each script. It does not import Detectron2 and this
package, which read the environment.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["torch._dynamo", "torchvision", "timm", "transformers", "open_clip", "matplotlib.pyplot", "cv2"]
)


def run_script(path: str, *args, **environment) -> subprocess.CompletedProcess:
    """Run a script of the repository like ``python PATH ARGS`` in the repository's folder.

    Args:
        environment: variables to add to those of this process.
    """
    with TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        variables = {**os.environ, **{k: str(v) for k, v in environment.items()}}
        process = _forks.Process(target=_run, args=([path, *map(str, args)], variables, files))
        process.start()
        process.join()
        said = [Path(file).read_text(encoding="utf-8") for file in files]
    return subprocess.CompletedProcess([path, *args], process.exitcode, *said)


def _run(command: list[str], variables: dict[str, str], files: list[str]) -> None:
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    warnings.simplefilter("ignore")
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
