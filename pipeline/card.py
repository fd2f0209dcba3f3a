"""The dataset card, README.md of a dataset: YAML for `datasets` and the Hub, prose for people."""

from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.trajectory import TrajectoryRow

_HEAD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
  default: true
tags:
- discrete-flow-matching
- trajectories
- distillation
---
"""


def dataset_card(manifest: DatasetManifest) -> str:
    """The card's text; a function of the manifest alone."""
    identity = manifest.identity
    compass = f"`{identity.compass.kind}` compass" if identity.compass else "no compass"
    how = f"{identity.shaping.candidates} candidates per step, `{identity.shaping.select}`, tau {identity.shaping.tau:g}"
    columns = "\n".join(f"| `{name}` | {field.description} |" for name, field in TrajectoryRow.model_fields.items())
    return f"""{_HEAD}
# Trajectories of a discrete flow matching teacher

{manifest.totals.rows} trajectories (arm: {identity.arm}) of {identity.rollout.length} tokens over
{identity.rollout.steps} steps, made by tsdfm-pipeline from a `{identity.teacher.source}`-source teacher
with a {compass} ({how}).

```python
from datasets import load_dataset
rows = load_dataset("PATH_OR_REPOSITORY", split="train")
print(rows[0]["text"], rows[0]["event_step"][:8])
```

A trajectory is its source and its events: replaying (`event_position`, `event_token`) in order on the source gives `tokens`;
an event of step s happens between times s/{identity.rollout.steps} and (s + 1)/{identity.rollout.steps}.
`manifest.json` holds the full configuration, the models' fingerprints and a checksum per shard.

| column | meaning |
|---|---|
{columns}
"""
