"""The dataset card, README.md of a dataset: YAML for `datasets` and the Hub, prose for people."""

import re
from typing import Any

import pyarrow as pa
import yaml

from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.trajectory import ARROW_SCHEMA, TrajectoryRow

DEFAULT_CONFIG = {
    "config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}], "default": True}
TAGS = ["discrete-flow-matching", "trajectories", "distillation"]


def front_matter(fields: dict[str, Any]) -> str:
    """The YAML head of a card, its two rules included."""
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def read_front_matter(card: str) -> dict[str, Any]:
    """The fields of a card's YAML head; {} if it has none that can be read."""
    found = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    try:
        fields = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}


def column_table() -> str:
    """The columns of a row, their Arrow types and meaning, as Markdown."""
    rows = "\n".join(f"| `{field.name}` | {_type(field.type)} | {TrajectoryRow.model_fields[field.name].description} |"
                     for field in ARROW_SCHEMA)
    return f"| column | type | meaning |\n|---|---|---|\n{rows}"


def _type(arrow: pa.DataType) -> str:
    return f"list of {arrow.value_type}" if pa.types.is_list(arrow) else str(arrow)


def dataset_card(manifest: DatasetManifest) -> str:
    """The card's text; a function of the manifest alone."""
    identity = manifest.identity
    compass = f"`{identity.compass.kind}` compass" if identity.compass else "no compass"
    how = f"{identity.shaping.candidates} candidates per step, `{identity.shaping.select}`, tau {identity.shaping.tau:g}"
    return f"""{front_matter({"configs": [DEFAULT_CONFIG], "tags": TAGS})}
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

{column_table()}
"""
