from dataclasses import dataclass, field

from tabulate import tabulate


@dataclass
class Changes:
    """What a reader changed in a file, counted by kind, with the first item of each kind.

    Attributes:
        first: the number of changes and the first changed item, by kind of change.
    """

    first: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, item: str, count: int = 1) -> None:
        """Count a change of one kind.

        Args:
            what: the kind, such as "iscrowd was missing: set to 0".
            item: the changed item, such as "annotation 7 (image a.png)".
        """
        before, example = self.first.get(what, (0, item))
        self.first[what] = before + count, example

    def __bool__(self) -> bool:
        return bool(self.first)

    def __str__(self) -> str:
        rows = [(what, count, example) for what, (count, example) in self.first.items()]
        return tabulate(rows, ["change", "items", "first"], tablefmt="github")
