"""What stands between the driver of a training and its processes: progress one way, a wish to stop the other.

Light to import: the process that it lives in needs no networks, and starts the sooner.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class News:
    """What the training processes said last: whether they have made an update, which was the last that they told of and its
    scalars, what no restart mends, whether they ended early, and all that they warned of."""

    begun: bool = False
    step: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    fault: Exception | None = None
    stopped: bool = False
    warnings: tuple[str, ...] = ()


class Desk:
    """A Ray actor between the driver and the training processes: progress one way, a wish to stop the other.

    Ray Train has no callback that shows progress and can stop a run.
    """

    def __init__(self) -> None:
        # Each is set by one kind of call: calls of several processes run side by side, and none may undo another's word.
        self._begun = self._stopping = self._stopped = False
        self._progress: tuple[int, dict[str, float]] = (0, {})
        self._faults: list[Exception] = []
        self._warnings: list[str] = []

    def post(self, step: int, scalars: dict[str, float]) -> bool:
        """Take the scalars of update `step` from a training process, and answer whether it is to save and stop."""
        self._progress = (step, scalars)
        return self.stopping()

    def stopping(self) -> bool:
        """Tell a training process, which has made an update, whether it is to save and stop."""
        self._begun = True
        return self._stopping

    def news(self) -> News:
        """What the training processes said last."""
        step, scalars = self._progress
        return News(self._begun, step, scalars, self._faults[0] if self._faults else None, self._stopped,
                    tuple(self._warnings))

    def warn(self, line: str) -> None:
        """Have the driver say that something is amiss."""
        self._warnings.append(line)

    def stop(self) -> None:
        """Ask the training to save and stop."""
        self._stopping = True

    def leave(self, fault: Exception | None) -> None:
        """The training ended early: it was asked to (None), or something is wrong that no restart mends. The first counts."""
        if fault is not None:
            self._faults.append(fault)
        self._stopped = True
