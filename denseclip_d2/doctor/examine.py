from collections.abc import Iterator, Sequence
from pathlib import Path

from .datasets import look_at_datasets
from .finding import Finding
from .machine import look_at_disk, look_at_gpus, look_at_memory
from .software import look_at_detectron2, look_at_packages, look_at_python
from .weights import look_at_clip, look_at_network, look_at_zoo


def examine(requirements: Path, output: Path, datasets: Sequence[str] | None = None) -> Iterator[Finding]:
    """Check everything that this project needs of a machine.

    Args:
        requirements: a pip requirements file whose versions are known to work together.
        output: folder for checkpoints; it need not exist.
        datasets: names of registered datasets. None checks those of datasets/README.md.
    """
    yield look_at_python()
    yield look_at_packages(requirements)
    yield look_at_detectron2()
    yield from look_at_gpus()
    yield from look_at_memory()
    yield look_at_disk(output)
    yield look_at_zoo()
    yield look_at_clip()
    yield look_at_network()
    yield from look_at_datasets(datasets)
