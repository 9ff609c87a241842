from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """What one look has found.

    Attributes:
        about: what was looked at.
        state: "ok"; "note", of what some of this project's uses need; "wrong", of what has to be put right.
        text: what there is.
        way_out: what to do about it; empty where there is nothing to do, or ``text`` says it.
    """

    about: str
    state: Literal["ok", "note", "wrong"]
    text: str
    way_out: str = ""

    def __str__(self) -> str:
        lines = self.text.splitlines() + ([f"-> {self.way_out}"] if self.way_out else [])
        return f"{self.state:5}  {self.about}: " + "\n       ".join(lines)
