"""What trajectories cost: forward passes and candidates in closed form, and seconds and bytes by making a few.

Rings don't depend on the model, so how often the sampler visits a trajectory follows from the path alone. A position rings for
the first time in step s with probability kappa_{s+1} - kappa_s (mask source: later rings don't count), or rings there with
probability g (uniform source); a trajectory of L positions is visited in step s unless none of them rings.
"""

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch
from torch import Tensor, nn

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import ShardPlan, digest
from tsdfm.pipeline.flow.compass import Compass, FittedCompass, TokenCompass, TokenSets
from tsdfm.pipeline.flow.generate import rows_of
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.opening import Models
from tsdfm.pipeline.flow.transformers_compass import TransformersCompass
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.terms import Arm, Clocks, Solver

STAGES: dict[Solver, int] = {"euler": 1, "rk4": 4, "rk4_chained": 4}  # forward passes, and choices, of a visited step
LONG_SECONDS = 40.0  # a batch that would take longer is measured by fewer trajectories, and then in fewer steps
LEAST_ROWS, PROBE_STEPS = 8, 4


@dataclass(frozen=True)
class Visits:
    """Of one trajectory, expected: steps that are visited, those of them at which whole candidates and at which tokens are
    chosen, and events."""

    steps: float
    shaped: float
    by_token: float
    events: float


def visits(
    path: MixturePath, times: tuple[float, ...], length: float, shaped_steps: tuple[int, ...] = (),
    clocks: Clocks = "independent", token_steps: tuple[int, ...] = (),
) -> Visits:
    """The expected visits of a trajectory of `length` positions that have a clock on a grid of N + 1 times.

    A step is visited if any clock rings. Of clocks that are not independent, as many ring as their share says, to within one.
    """
    grid = torch.tensor(times, dtype=torch.float64)
    rings = path.ring_probability(grid[:-1], grid[1:]) if path.mask_id is None else path.kappa(grid).diff()
    visited = 1 - (1 - rings) ** length if clocks == "independent" else (rings * length).clamp_max(1)
    shaped, by_token = (float(visited[list(steps)].sum()) for steps in (shaped_steps, token_steps))
    return Visits(float(visited.sum()), shaped, by_token, float(rings.sum()) * length)


@dataclass(frozen=True)
class RolloutWork:
    """What trajectories take, expected: forward passes of the teacher, a text each, and candidate texts to score at the most.

    Candidates that are equal are scored once, and `ar` compasses run only what differs: how much that saves, the models decide.
    Where tokens are chosen one by one, a step has one text to score in each sweep.
    """

    forwards: float
    candidates: float
    events: float

    @classmethod
    def of(cls, identity: Identity, trajectories: int, free: float | None = None) -> "RolloutWork":
        """The work of so many trajectories of a dataset, in each of its arms.

        `free`: positions of a text that aren't fixed, on average, which all texts are taken to have; None: all positions.
        """
        teacher, rollout = identity.teacher, identity.rollout
        path = MixturePath(teacher.kappa_exponent, teacher.vocab_size, teacher.mask_id)
        positions = identity.grid.length if free is None else free
        each = visits(path, rollout.times, positions, identity.grid.shaped_steps, rollout.clocks or "independent",
                      identity.grid.token_steps)
        stages, scored = STAGES[rollout.solver], identity.compass is not None
        choices = [_texts(identity, arm, each) * stages for arm in identity.arms]
        finals = len(identity.arms) if scored else 0  # the finished text of each row
        return cls(trajectories * len(identity.arms) * each.steps * stages, trajectories * (sum(choices) + finals),
                   trajectories * len(identity.arms) * each.events)


def _texts(identity: Identity, arm: Arm, each: Visits) -> float:
    """Texts that are scored for the choices of a trajectory of an arm."""
    candidates = identity.grid.candidates_of(arm)
    if candidates == 1 or identity.compass is None:
        return 0.0
    return candidates * each.shaped + identity.shaping.sweeps * each.by_token


@dataclass
class Meter:
    """Counts what networks are given while a shard is made."""

    forwards: int = 0  # texts that the teacher saw
    candidates: int = 0  # texts that the compass was asked about
    compass_tokens: int = 0  # that went through the compass
    _asked: bool = field(default=False, repr=False)  # the compass is at work; the teacher may be its network

    @contextmanager
    def reading(self, models: Models) -> Iterator[Models]:
        """Count meanwhile, in the models that this gives."""
        network = _network_of(models.compass)
        hooks = [models.teacher.network.trunk.register_forward_pre_hook(self._teacher)]
        if network is not None:
            embedding = next(module for module in network.modules() if isinstance(module, nn.Embedding))
            hooks.append(embedding.register_forward_pre_hook(self._compass))
        try:
            metered = None if models.compass is None else _Metered(models.compass, self, counts=network is None)
            yield replace(models, compass=metered)
        finally:
            for hook in hooks:
                hook.remove()

    def _teacher(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._asked:
            self.compass_tokens += inputs[0].numel()
        else:
            self.forwards += len(inputs[0])

    def _compass(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.compass_tokens += inputs[0].numel()


class _Metered:
    """A compass that tells a meter what it is asked."""

    def __init__(self, compass: Compass, meter: Meter, *, counts: bool) -> None:
        self.compass, self.meter, self.counts = compass, meter, counts
        self.needs_completion, self.proposal_weight = compass.needs_completion, compass.proposal_weight

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        with self._asking(states.shape[0] * states.shape[1]):
            return self.compass.energy(states, t, completion)

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """See `TokenCompass.token_energy`."""
        assert isinstance(self.compass, TokenCompass)
        with self._asking(len(states)):
            return self.compass.token_energy(states, t, completion, sets)

    @contextmanager
    def _asking(self, texts: int) -> Iterator[None]:
        self.meter.candidates += texts
        self.meter._asked = True
        try:
            yield
        finally:
            self.meter._asked = False


def _network_of(compass: Compass | None) -> nn.Module | None:
    """The network that is a compass's own; None: it has none, or the teacher's."""
    if isinstance(compass, FittedCompass):
        return compass.network
    return compass.opened.model if isinstance(compass, TransformersCompass) else None


@dataclass(frozen=True)
class Measured:
    """What a few trajectories took, in every arm of their dataset."""

    trajectories: int
    seconds: float  # for them
    compass_tokens: float
    bytes: float  # of their rows, in all arms
    shard_bytes: float  # that a shard has besides its rows
    share: float  # of the time of a trajectory that the steps which were made take

    @property
    def seconds_each(self) -> float:
        """Seconds for one trajectory, in all of its steps and arms."""
        return self.seconds / self.trajectories / self.share


def measure(models: Models, identity: Identity, first: int, seconds: float) -> Measured:
    """Make trajectories of a dataset, `first` and those after it, a batch at a time, and forget them.

    Args:
        models: opened, on their device.
        identity: of the dataset.
        first: id of the first trajectory.
        seconds: after which no further batch is begun; the first is always made. Where a batch would take longer than
            LONG_SECONDS, fewer trajectories are made together, and then fewer steps, whose seconds count for a share of all.
    """
    per_text = identity.per_text
    batch = min(identity.rollout.batch_size * per_text, identity.shard_size, identity.trajectories)
    seconds_of = _seconds_of(models, identity, range(first, first + batch))
    whole, rows = seconds_of(_visited(identity, identity.rollout.steps)), batch
    while rows >= 2 * max(LEAST_ROWS, per_text) and whole * rows / batch > LONG_SECONDS:
        rows = rows // 2 // per_text * per_text
    shorter, share = _shortened(identity, seconds_of, LONG_SECONDS * batch / rows)
    tokens, tables, made, spent = 0, list[pa.Table](), 0, 0.0
    asked = RolloutWork.of(shorter, 1).candidates
    scale = RolloutWork.of(identity, 1).candidates / asked if asked else 1.0
    while not made or spent < seconds:
        meter, item = Meter(), ShardPlan("measured", first + made, first + made + rows)
        with meter.reading(models) as metered:
            began = time.monotonic()
            tables.append(rows_of(metered, shorter, item))
            shards.encode(tables[-1], digest(shorter))
            spent += time.monotonic() - began
        tokens, made = tokens + meter.compass_tokens, made + rows
    a_row, empty = _bytes_of(pa.concat_tables(tables), digest(identity))
    return Measured(made, spent, tokens * scale, a_row * made * len(identity.arms), empty, share)


def _bytes_of(table: pa.Table, owner: str) -> tuple[float, float]:
    """Bytes of a row, and of a shard without its rows: by shards of all rows and of half of them."""
    rows, half = table.num_rows, table.num_rows // 2
    whole = len(shards.encode(table, owner))
    if not half:
        return 0.0, float(whole)
    a_row = (whole - len(shards.encode(table.slice(0, half), owner))) / (rows - half)
    return a_row, max(0.0, whole - a_row * rows)


Seconds = Callable[[float], float]  # of one batch in all arms, by the expected visits of a trajectory


def _seconds_of(models: Models, identity: Identity, ids: range) -> Seconds:
    """Roughly how long a batch takes: something for its jumps, and something for each visit, told from few steps."""
    taken = []
    for steps in (1, 1, PROBE_STEPS):  # the first warms up
        rollout, began = identity.rollout.model_copy(update={"steps": steps}), time.monotonic()
        rows_of(models, identity.model_copy(update={"rollout": rollout}), ShardPlan("measured", ids.start, ids.stop))
        taken.append(time.monotonic() - began)
    more = _visited(identity, PROBE_STEPS) - 1
    a_visit = max((taken[2] - taken[1]) / more, taken[2] / (more + 1) / 10)
    return lambda visited: max(0.0, taken[1] - a_visit) + a_visit * visited


def _visited(identity: Identity, steps: int) -> float:
    """The expected visits of a trajectory, were its steps so many."""
    shorter = identity.model_copy(update={"rollout": identity.rollout.model_copy(update={"steps": steps})})
    return RolloutWork.of(shorter, 1).forwards / len(identity.arms) / STAGES[identity.rollout.solver]


def _shortened(identity: Identity, seconds_of: Seconds, most: float) -> tuple[Identity, float]:
    """The identity with as many steps as a batch makes in `most` seconds, and which share of a trajectory's time they take."""
    steps, whole = identity.rollout.steps, seconds_of(_visited(identity, identity.rollout.steps))
    while steps > 1 and seconds_of(_visited(identity, steps)) > most:
        steps //= 2
    shorter = identity.model_copy(update={"rollout": identity.rollout.model_copy(update={"steps": steps})})
    return shorter, 1.0 if steps == identity.rollout.steps else seconds_of(_visited(identity, steps)) / whole


def makespan(shards_left: list[int], workers: int, seconds_each: float) -> float:
    """Seconds in which `workers` make shards of so many trajectories, handed out in turn to whoever is free."""
    free = [0.0] * max(1, min(workers, len(shards_left)))
    for trajectories in shards_left:
        heapq.heappush(free, heapq.heappop(free) + trajectories * seconds_each)
    return max(free)
