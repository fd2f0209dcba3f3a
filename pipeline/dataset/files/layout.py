"""How many units of work a file holds: told by the settings alone, never by what has been measured."""

import itertools
import json
from math import ceil

from tsdfm.pipeline.dataset.manifest import MANIFEST_FILE, RUN_FILE
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError, plain_json
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.terms import Arm

ONE_UNIT_UP_TO = 1000  # units of work, in a dataset whose files are one each
FILE_BYTES = 128 << 20  # that larger datasets aim at
# Compressed, by datasets of the embedded teachers (64 tokens, 8 and 64 steps, both sources): files had 0.75 to 1.3 of what
# these say. They are part of what a dataset's files are, so they stay.
BYTES_PER_TOKEN = 3.0  # of a text, as a token and as characters
BYTES_PER_EVENT = 2.2  # of its step, position and token
BYTES_PER_CANDIDATE = 1.15
BYTES_PER_ENERGY = 1.1
BYTES_PER_LIKELY = 2.3  # of the top-k: an id and a log-probability
BYTES_PER_CHOICE = 0.55  # of a token that chose by itself, and of each of its candidates:
BYTES_PER_TOKEN_ENERGY = 1.5
BYTES_PER_LOGPROB = 1.4  # of a candidate


def with_layout(identity: Identity, store: Store) -> Identity:
    """An identity whose `shards_per_file` is settled: as asked for, else what `store` holds already, else by the settings."""
    if identity.shards_per_file is not None:
        return identity
    held = _held(store)
    units = ceil(identity.trajectories / identity.shard_size)
    if held is not None:
        found = held.get("shards_per_file")
        settled = found if isinstance(found, int) else None
    else:
        settled = shards_per_file(identity) if units > ONE_UNIT_UP_TO else None
    return identity.model_copy(update={"shards_per_file": settled})


def _held(store: Store) -> dict[str, object] | None:
    """The identity of the dataset, or of the run, that is there; None if there is neither, or one that can't be read."""
    for file in (MANIFEST_FILE, RUN_FILE):
        data = store.read(file)
        if data is None:
            continue
        try:
            found = plain_json(data, file)
            identity = found["identity"] if file == MANIFEST_FILE else found
        except (InputError, KeyError, TypeError, json.JSONDecodeError):
            return {}
        return identity if isinstance(identity, dict) else {}
    return None


def shards_per_file(identity: Identity) -> int:
    """How many units make a file of about FILE_BYTES, at least one."""
    unit = identity.shard_size * sum(row_bytes(identity, arm) for arm in identity.arms)
    return max(1, round(FILE_BYTES / unit))


def rings_of_a_position(identity: Identity) -> float:
    """How often a position is redrawn on average: once with the mask source, else the sum of all ring probabilities.

    The probability of a step from t to t' is (kappa' - kappa) / (1 - kappa), kappa = t^n (see `flow.mixture_path`).
    """
    if identity.teacher.source == "mask":
        return 1.0
    kappa = [float(t**identity.teacher.kappa_exponent) for t in identity.rollout.times]
    return sum((after - before) / (1 - before) for before, after in itertools.pairwise(kappa))


def row_bytes(identity: Identity, arm: Arm) -> float:
    """About how many bytes a row of an arm takes in a file, by its sizes alone."""
    grid, shaped = identity.grid, arm == "shaped"
    candidates = grid.candidates_of("shaped" if shaped else "blind")
    energies = grid.slots_of("shaped") * candidates if shaped else 0
    per_event = BYTES_PER_EVENT + BYTES_PER_CANDIDATE * candidates + BYTES_PER_LIKELY * grid.top_k
    if grid.by_token:
        per_event += BYTES_PER_CHOICE + BYTES_PER_TOKEN_ENERGY * candidates
    if grid.logprobs:
        per_event += BYTES_PER_LOGPROB * candidates
    return grid.length * (BYTES_PER_TOKEN + rings_of_a_position(identity) * per_event) + BYTES_PER_ENERGY * energies
