from typing import Literal, NamedTuple


class CheckResult(NamedTuple):
    """The result of one check.

    Attributes:
        about: what was checked.
        state: "ok"; "note" for what only some uses need; "wrong" for what has to be fixed.
        text: what was found.
        fix: what to do; empty if nothing is needed.
    """

    about: str
    state: Literal["ok", "note", "wrong"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        lines = self.text.splitlines() + ([f"-> {self.fix}"] if self.fix else [])
        return f"{self.state:5}  {self.about}: " + "\n       ".join(lines)


def judge(about: str, good: bool, text: str, state: Literal["note", "wrong"], fix: str) -> CheckResult:
    """Return a result that is "ok" if it is good, else ``state`` with ``fix``."""
    return CheckResult(about, "ok", text) if good else CheckResult(about, state, text, fix)
