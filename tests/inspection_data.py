"""Datasets to look into, of several kinds, their rows as plain logs, and metrics by plain counting."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.support import TinyModels, make_dataset
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.dataset.manifest import read_shard
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.manifest import DatasetManifest

# Together: both sources, both rules, one arm and two, unshaped steps, steps without jumps, candidates that
# agree, a last shard that is short, more steps than bins, no compass, and prompts, with gaps.
KINDS = ("mask", "uniform", "blind", "prompts")
PROMPTS = ("the quick", "masks ___ in ___", "___ energy ___ dog")


def dataset(kind: str, out: Path, models: TinyModels) -> tuple[Store, DatasetManifest]:
    """Make the dataset of a kind in `out`."""
    mask = {"trajectories": 7, "shard_size": 3, "rollout": {"steps": 37, "temperature": 0.25},
            "shaping": {"candidates": 3, "tau": 0.3, "shape_every": 2}}
    (prompts := out.with_name(f"{out.name}-prompts.txt")).write_text("\n".join(PROMPTS))
    changes: dict[str, dict[str, object]] = {
        "mask": mask,
        "uniform": {"teacher": str(models.uniform), "arm": "shaped", "rollout": {"steps": 12, "top_k": 2},
                    "shaping": {"candidates": 4, "select": "resample", "beta": 5.0}},
        "prompts": {"prompts": str(prompts), "prompt_gaps": True, "per_prompt": 2, "trajectories": 5, "shard_size": 3},
        "blind": {"compass": "none", "arm": "blind", "rollout": {"steps": 5}},
    }
    manifest = make_dataset(out, models, **changes[kind])
    return open_store(str(out)), manifest


def logs_of(store: Store, manifest: DatasetManifest, arm: str) -> list[JumpLog]:
    """Every trajectory of one arm, in order of id."""
    tables = [read_shard(store, record) for record in manifest.shards]
    logs = [shards.to_log(table, row) for table in tables for row in range(table.num_rows)]
    return [log for log in logs if log.arm == arm]


def entropy_by_counting(tokens: Sequence[int]) -> float:
    """The formula, in bits."""
    return -sum(n / len(tokens) * math.log2(n / len(tokens)) for n in Counter(tokens).values())


def distinct_by_counting(sequences: Sequence[Sequence[int]], n: int) -> float:
    """A set of tuples."""
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    return len(set(grams)) / len(grams)
