"""Time and memory of alternatives, side by side in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """Time and memory of one candidate, compared with the first of its table.

    Attributes:
        section, case, name: the table, what the candidate ran on, the candidate.
        milliseconds: median over the rounds.
        ratio: median over the rounds of its time divided by the first candidate's time in the same round.
        ratio_range: least and greatest of these ratios.
        megabytes: peak memory (10^6 bytes), None if it was not measured.
        memory_ratio: peak memory divided by the first candidate's.
        images_per_second: None if there are no images.
    """

    section: str
    case: str
    name: str
    milliseconds: float
    ratio: float
    ratio_range: tuple[float, float]
    megabytes: float | None = None
    memory_ratio: float | None = None
    images_per_second: float | None = None


def compare(
    section: str,
    case: str,
    candidates: Mapping[str, Step],
    repeats: int,
    device: torch.device,
    *,
    held: Mapping[str, Callable[[], int]] | None = None,
    images: int = 0,
) -> list[Measurement]:
    """Measure candidates against the first of them.

    Args:
        candidates: steps by name.
        repeats: number of timed rounds; each round runs every candidate once.
        held: returns the bytes that belong to a candidate between its steps. If it is given, peak memory is
            measured: these bytes and the maximum that a step allocates on top.
        images: number of images in a step.
    """
    seconds = interleaved(candidates, repeats, device)
    memory = {name: own() + peak_memory(candidates[name], device) for name, own in (held or {}).items()}
    first = next(iter(candidates))
    rows = []
    for name, times in seconds.items():
        ratios = [own / other for own, other in zip(times, seconds[first], strict=True)]
        row = Measurement(section, case, name,
                          1e3 * median(times), median(ratios), (min(ratios), max(ratios)),
                  memory[name] / 1e6 if memory else None, memory[name] / memory[first] if memory else None,
                  images / median(times) if images else None)  # fmt: skip
        rows.append(row)
    return rows


def interleaved(candidates: Mapping[str, Step], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each candidate in each round, after one round that is not counted.

    Every other round has the reversed order, so that a slow period of the machine affects all candidates.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for step in candidates.values():
        step()
    for i in range(repeats):
        for name in list(candidates)[:: -1 if i % 2 else 1]:
            _synchronize(device)
            start = perf_counter()
            candidates[name]()
            _synchronize(device)
            seconds[name].append(perf_counter() - start)
    return seconds


def peak_memory(step: Step, device: torch.device) -> int:
    """Return the maximum of bytes that a step allocates on top of what is there before it.

    On a GPU, the allocator counts them. On a CPU, the profiler's record of tensors gives them; the record
    omits what libraries allocate without PyTorch's allocator.
    """
    if device.type == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_table(rows: Sequence[Measurement]) -> str:
    """Return rows as a Markdown table, without the columns that are empty."""
    headers = ["", "case", "ms", "ratio", "least to greatest", "MB", "ratio", "images/s"]
    table = [
        [
            row.name,
            row.case,
            f"{row.milliseconds:.4g}",
            f"{row.ratio:.3f}",
            "{:.3f} to {:.3f}".format(*row.ratio_range),
            "" if row.megabytes is None else f"{row.megabytes:.0f}",
            "" if row.memory_ratio is None else f"{row.memory_ratio:.3f}",
            "" if row.images_per_second is None else f"{row.images_per_second:.3g}",
        ]
        for row in rows
    ]
    keep = [i for i in range(len(headers)) if any(cells[i] for cells in table)]
    table = [[cells[i] for i in keep] for cells in table]
    return tabulate(table, [headers[i] for i in keep], tablefmt="github", disable_numparse=True)
