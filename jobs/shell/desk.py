"""A Ray actor between a driver and training processes, for Ray Train has no callback that shows progress and can stop a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class News:
    """What the training processes said last: update, scalars, what no restart mends, and whether they ended early."""

    step: int
    scalars: dict[str, float]
    fault: Exception | None
    stopped: bool


class Desk:
    """A Ray actor between the driver and the training processes: progress one way, a wish to stop the other."""

    def __init__(self) -> None:
        self._step, self._scalars = 0, dict[str, float]()
        self._stopping = self._stopped = False
        self._fault: Exception | None = None

    def post(self, step: int, scalars: dict[str, float]) -> bool:
        """Take the scalars of update `step` from a training process, and answer whether it is to save and stop."""
        self._step, self._scalars = step, scalars
        return self._stopping

    def news(self) -> News:
        """The last update and its scalars, the fault if there was one, and whether the training ended early."""
        return News(self._step, self._scalars, self._fault, self._stopped)

    def stop(self) -> None:
        """Ask the training to save and stop."""
        self._stopping = True

    def leave(self, fault: Exception | None) -> None:
        """The training ended early: it was asked to (None), or something is wrong that no restart mends. The first counts."""
        self._stopped, self._fault = True, self._fault or fault
