"""How long a compass takes, measured around its every call."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from tsdfm.pipeline.flow.compass import Compass, TokenCompass, TokenSets


class Timed:
    """A compass that counts the seconds that its energies take.

    On a GPU a call ends before its kernels do, where the compass does not wait for them itself; so it is less than the whole.
    """

    def __init__(self, compass: Compass) -> None:
        self.compass, self.seconds = compass, 0.0
        self.needs_completion, self.proposal_weight = compass.needs_completion, compass.proposal_weight

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        with self._timing():
            return self.compass.energy(states, t, completion)

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """See `TokenCompass.token_energy`."""
        assert isinstance(self.compass, TokenCompass)
        with self._timing():
            return self.compass.token_energy(states, t, completion, sets)

    @contextmanager
    def _timing(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
