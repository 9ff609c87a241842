"""Time and memory of alternatives, side by side in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """What one contender took, and how that compares with the first of its table.

    Attributes:
        section, case, name: where it belongs, what it was given, who it is.
        milliseconds: median over the rounds.
        ratio: median over the rounds of its time over the first contender's in the same round.
        ratio_range: the least and the greatest of those.
        megabytes: peak memory (10^6 bytes), None where it was not measured.
        memory_ratio: of that to the first contender's.
        images_per_second: None where there are no images.
        note: more, such as a bound.
        numbers: where the case is on the axes along which it can grow; empty where it is on none.
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
    note: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)


def compare(
    section: str,
    case: str,
    contenders: Mapping[str, Step],
    repeats: int,
    device: torch.device,
    *,
    held: Mapping[str, Callable[[], int]] | None = None,
    images: int = 0,
    notes: Mapping[str, str] | None = None,
    by_bandwidth: float = 0.0,
    launched: bool = True,
    before: Step = lambda: None,
    numbers: Mapping[str, int] | None = None,
) -> list[Row]:
    """Measure contenders against the first of them.

    Args:
        contenders: what to run, by name.
        repeats: rounds that are timed; each runs every contender once.
        held: tells the bytes that belong to a contender between its runs. Given, peak memory is measured too:
            those bytes and the most that one run allocates on top.
        images: that one run takes in.
        notes: more to say of contenders.
        by_bandwidth: the least seconds that memory's bandwidth allows, to be told beside the share reached.
        launched: False leaves out, on a GPU, the time that the host takes to launch what runs there.
        before: done before each run that is timed.
        numbers: of the rows.
    """
    timed = contenders if launched else {name: without_launches(s, device) for name, s in contenders.items()}
    seconds = interleaved(timed, repeats, device, before)
    memory = {}
    if held is not None:
        memory = {name: held[name]() + peak_memory(step, device) for name, step in contenders.items()}
    first = next(iter(contenders))
    rows = []
    for name, times in seconds.items():
        note = (notes or {}).get(name, "")
        if by_bandwidth:
            note += f"{1e3 * by_bandwidth:.3g} ms by bandwidth: {by_bandwidth / median(times):.0%}"
        ratios = [own / other for own, other in zip(times, seconds[first], strict=True)]
        row = Row(section, case, name, 1e3 * median(times), median(ratios), (min(ratios), max(ratios)),
                  memory[name] / 1e6 if memory else None, memory[name] / memory[first] if memory else None,
                  images / median(times) if images else None, note, dict(numbers or {}))  # fmt: skip
        rows.append(row)
    return rows


def interleaved(
    contenders: Mapping[str, Step], repeats: int, device: torch.device, before: Step = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round that is not counted.

    In every other round the order is reversed, so that what slows the machine down slows all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        step()
    for i in range(repeats):
        for name in list(contenders)[:: -1 if i % 2 else 1]:
            before()
            _synchronize(device)
            start = perf_counter()
            contenders[name]()
            _synchronize(device)
            seconds[name].append(perf_counter() - start)
    return seconds


def without_launches(step: Step, device: torch.device) -> Step:
    """On a GPU, a step as a CUDA graph, which is launched at once."""
    if device.type != "cuda":
        return step
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):  # what is done once is not to be in the graph
        for _ in range(3):
            step()
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes that a run allocates at most beyond what is there before it.

    On a GPU by the allocator's own count. On a CPU by the profiler's record of what tensors take and give
    back; what libraries take for themselves, without PyTorch's allocator, is not in it.
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


def bandwidth(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes a second that a copy of ``size`` bytes reads and writes: the best of five."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(interleaved({"copy": lambda: target.copy_(source)}, 5, device)["copy"])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_table(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown."""
    headers = ["", "case", "ms", "ratio", "least to greatest", "MB", "ratio", "images/s", ""]
    table = [
        [
            row.name,
            row.case,
            f"{row.milliseconds:.4g}",
            f"{row.ratio:.3f}",
            "{:.3f} to {:.3f}".format(*row.ratio_range),
            *("" if x is None else x for x in (_rounded(row.megabytes), _rounded(row.memory_ratio, ".3f"))),
            "" if row.images_per_second is None else f"{row.images_per_second:.3g}",
            row.note,
        ]
        for row in rows
    ]
    keep = [i for i in range(len(headers)) if any(cells[i] != "" for cells in table)]
    table = [[cells[i] for i in keep] for cells in table]
    return tabulate(table, [headers[i] for i in keep], tablefmt="github", disable_numparse=True)


def _rounded(number: float | None, form: str = ".0f") -> str | None:
    return None if number is None else format(number, form)
