from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        about: what was checked.
        state: "ok"; "note" for what only some uses need; "wrong" for what has to be fixed.
        text: what was found.
        way_out: what to do; empty if nothing is needed.
    """

    about: str
    state: Literal["ok", "note", "wrong"]
    text: str
    way_out: str = ""

    def __str__(self) -> str:
        lines = self.text.splitlines() + ([f"-> {self.way_out}"] if self.way_out else [])
        return f"{self.state:5}  {self.about}: " + "\n       ".join(lines)


def judge(about: str, good: bool, text: str, state: Literal["note", "wrong"], way_out: str) -> Finding:
    """Return a finding that is "ok" if it is good, else ``state`` with ``way_out``."""
    return Finding(about, "ok", text) if good else Finding(about, state, text, way_out)
