"""How long a compass takes, measured around its every call."""

import time

from torch import Tensor

from tsdfm.pipeline.flow.compass import Compass


class Timed:
    """A compass that counts the seconds that its energies take.

    On a GPU a call ends before its kernels do, where the compass does not wait for them itself; so it is less than the whole.
    """

    def __init__(self, compass: Compass) -> None:
        self.compass, self.seconds = compass, 0.0
        self.needs_completion, self.proposal_weight = compass.needs_completion, compass.proposal_weight

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        began = time.perf_counter()
        try:
            return self.compass.energy(states, t, completion)
        finally:
            self.seconds += time.perf_counter() - began
