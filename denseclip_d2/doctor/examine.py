from collections.abc import Iterator, Sequence
from pathlib import Path

from .check_result import CheckResult
from .datasets import check_datasets
from .machine import check_disk, check_gpus, check_memory
from .software import check_detectron2, check_packages, check_python
from .weights import check_clip_weights, check_network, check_zoo


def examine(requirements: Path, output: Path, datasets: Sequence[str] | None = None) -> Iterator[CheckResult]:
    """Check everything that this project needs of a machine.

    Args:
        requirements: a pip requirements file whose versions are known to work together.
        output: folder for checkpoints; it need not exist.
        datasets: names of registered datasets. None checks those of datasets/README.md.
    """
    yield check_python()
    yield check_packages(requirements)
    yield check_detectron2()
    yield from check_gpus()
    yield from check_memory()
    yield check_disk(output)
    yield check_zoo()
    yield check_clip_weights()
    yield check_network()
    yield from check_datasets(datasets)
