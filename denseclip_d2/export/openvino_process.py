"""Run as a script: answers pictures with what OpenVINO makes of them by an ONNX file.

Its arguments are the file, and the precision to compute in or nothing. Pickled arrays come in by stdin, and
arrays by name go out by stdout.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import openvino  # an extra


def main(path: str, precision: str = "") -> None:
    core = openvino.Core()
    read = core.read_model(Path(path).read_bytes())
    names = json.loads(read.get_rt_info(["framework", "outputs"]).value)
    model = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": precision} if precision else {})
    while True:
        try:
            pictures = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        given = model({"pictures": pictures})
        pickle.dump({name: np.array(given[name]) for name in names}, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
