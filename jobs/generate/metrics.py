"""What Ray exports of the shards that workers make, for Prometheus."""

from contextlib import suppress
from functools import cache

from ray.util.metrics import Counter

# Counters of all shards that were made, each by dataset: Ray exports them as ray_tsdfm_NAME_total.
METRICS = {
    "trajectories": "Trajectories made, those of both arms", "tokens": "Tokens of the texts of those trajectories",
    "shards": "Shards made", "making_seconds": "Seconds that workers took to make those shards",
    "compass_seconds": "Seconds of those in which the compass scored",
}


@cache
def _counters() -> dict[str, Counter]:
    return {name: Counter(f"tsdfm_{name}", description=text, tag_keys=("dataset",)) for name, text in METRICS.items()}


def measure(dataset: str, **values: float) -> None:
    """Add to the counters of METRICS; a dataset is worth finishing, whatever ails them."""
    with suppress(Exception):
        for name, value in values.items():
            if value > 0:  # a counter can't be moved by nothing
                _counters()[name].inc(value, {"dataset": dataset})
