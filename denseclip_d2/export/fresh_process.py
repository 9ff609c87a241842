"""Run as a script, by a Python with torch and torchvision: answers pictures with what a file gives of them.

Its arguments are "torchscript" or "torch_export", and the file. Pickled arrays come in by stdin, arrays by
name go out by stdout, decoded by the page that the file may hold. Nothing of this project is imported, for
the file is to do without it.
"""

import json
import pickle
import sys
from pathlib import Path

import torch
import torchvision  # noqa: F401  (for its operations)


def main(kind: str, path: str) -> None:
    about = {"outputs": ""}
    if kind == "torchscript":
        model = torch.jit.load(path, _extra_files=about)
    else:
        with Path(path).open("rb") as file:  # a path would have to end in .pt2
            # Its guards ask for levels of more than one cell, for no more than a layout in memory.
            model = torch.export.load(file, extra_files=about).module(check_guards=False)
    names = json.loads(about["outputs"])
    page = {"decode": lambda outputs, about, size: outputs}
    exec(about.get("decode.py", ""), page)
    while True:
        try:
            pictures = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        with torch.no_grad():
            outputs = model(torch.from_numpy(pictures))
        if kind == "torchscript":  # its files give tuples
            outputs = dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        outputs = page["decode"](outputs, about, pictures.shape[2:])
        pickle.dump({name: x.numpy() for name, x in outputs.items()}, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
