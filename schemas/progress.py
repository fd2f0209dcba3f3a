"""How long work tells how far it is: the one protocol of all that takes a while."""

from typing import Protocol


class Progress(Protocol):
    """Called as the work goes on. It may raise to stop the work, which then keeps what is finished."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of a stage are done; `note` is a few words for people."""


def unheard(stage: str, done: int, total: int, note: str = "") -> None:
    """The progress that nobody looks at."""
