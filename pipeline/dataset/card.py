"""The dataset card, README.md of a dataset: YAML for `datasets` and the Hub, prose for people."""

import re
from math import gcd
from typing import Any

import pyarrow as pa
import yaml

from tsdfm.schemas.manifest import DatasetManifest, Identity
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.trajectory import TrajectoryRow, arrow_schema
from tsdfm.schemas.words import count

ARMS_CONFIG = "arms"
TAGS = ["discrete-flow-matching", "trajectories", "distillation"]


def files_pattern(identity: Identity) -> str:
    """The pattern of a dataset's files, as `datasets` reads it."""
    return "data/*/train-*.parquet" if identity.foldered else "data/train-*.parquet"


def default_config(identity: Identity) -> dict[str, Any]:
    """The config of all rows."""
    return {"config_name": "default", "data_files": [{"split": "train", "path": files_pattern(identity)}], "default": True}


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


def is_card_of(card: bytes | None, identity: Identity) -> bool:
    """Whether a README.md, whatever else people have written into it, leads readers to the dataset's files."""
    fields = {} if card is None else read_front_matter(card.decode(errors="replace"))
    return default_config(identity) in (fields.get("configs") or [])


def column_table(identity: Identity) -> str:
    """The columns of a dataset's rows, their Arrow types and meaning, as Markdown."""
    rows = "\n".join(f"| `{field.name}` | {_type(field.type)} | {TrajectoryRow.model_fields[field.name].description} |"
                     for field in arrow_schema(identity.grid))
    return f"| column | type | meaning |\n|---|---|---|\n{rows}"


def _type(arrow: pa.DataType) -> str:
    return f"list of {arrow.value_type}" if pa.types.is_list(arrow) else str(arrow)


def arm_config(arm: Arm, path: str) -> dict[str, Any]:
    """The config that `load_dataset(..., ARM)` reads, where a glob of files holds that arm's rows alone."""
    return {"config_name": arm, "data_files": [{"split": "train", "path": path}]}


def sizes(identity: Identity) -> dict[str, int | str | None]:
    """What a reader needs to lay the lists of a row out, for the YAML head of a card."""
    grid = identity.grid
    return {"source": identity.teacher.source, "tokens": grid.length, "steps": grid.steps, "candidates": grid.candidates,
            "shaped_steps": len(grid.shaped_steps) if grid.candidates > 1 and "shaped" in identity.arms else 0,
            "top_k": grid.top_k, "vocabulary": grid.vocab_size, "mask_id": grid.mask_id,
            **({"per_prompt": identity.prompts.per_prompt} if identity.prompts else {}),
            **({"blocks_per_text": identity.blocks.per_text, "overlap": identity.blocks.overlap} if identity.blocks else {})}


def reading_notes(identity: Identity) -> str:
    """The sizes of a dataset, and what surprises who reads it for the first time, as Markdown."""
    found = sizes(identity)
    mask = "none: no position is ever masked" if found["mask_id"] is None else f"{found['mask_id']}"
    source, events = _starts(identity)
    clocks = identity.rollout.clocks
    given = (_GIVEN if identity.prompts else "") + _blocks(identity) + (_BY_TOKEN if identity.grid.by_token else "")
    spread = "" if clocks == "independent" else f"\n| clocks | {clocks} | which positions are written in the same step |"
    return f"""| | | |
|---|---|---|
| L | {found["tokens"]} | tokens of a text |
| N | {found["steps"]} | steps; an event of step s lies between the times s/N and (s + 1)/N |
| K | {found["candidates"]} | candidates of an event on the shaped arm; 1 on the blind arm |
| S | {found["shaped_steps"]} | steps of a shaped row at which a whole candidate was chosen; 0 on the blind arm |
| k | {found["top_k"]} | likeliest tokens kept with an event |
| V | {found["vocabulary"]} | token ids, 0 to V - 1; `tokenizer.json` decodes them |
| source | {found["source"]} | what a text starts from |
| mask id | {mask} | |{spread}

The YAML head of this file holds these numbers, too (`trajectories:`).

- `source_tokens` is {source}.
- Lists are flat, and their lengths differ between rows and arms ({events}): a default collate function can't stack them.
  `schemas/README.md` of the package has one that can.
{given}- Energies in `step_energy` may be NaN: where all candidates of a step were the same there was nothing to choose, and so
  nothing was scored. Leave them out of means (`numpy.nanmean`).
"""


_GIVEN = """- Texts were made with prompts: `fixed_positions` lists the positions of a row whose tokens were given. They
  stand in `source_tokens` from the start, and no event writes them.
"""
_BY_TOKEN = """- Tokens were chosen one by one at some steps (`token_steps` of `manifest.json`): each event has its own
  `event_choice`, and its candidates have energies of their own in `event_energy`, in nats, NaN where nothing was scored.
"""


def _blocks(identity: Identity) -> str:
    """How to put texts together, where they are in blocks."""
    blocks = identity.blocks
    if blocks is None:
        return ""
    end_id = identity.teacher.end_id
    ends = "" if end_id is None else f"  A text with token {end_id} in it ends there; the next trajectory begins another.\n"
    return f"""- Texts are longer than L, and lie in blocks: {blocks.per_text} trajectories in a row are one text. Each but the
  first goes on from the last {blocks.overlap} tokens of the one before it in its arm. These are the first of its `tokens`, and
  `fixed_positions` lists them; leave them out to put a text together.
{ends}"""


def _starts(identity: Identity) -> tuple[str, str]:
    """What `source_tokens` is, and how many events a row has."""
    if identity.teacher.source == "uniform":
        return "a list in every row: each starts from random tokens", "E differs from row to row"
    if identity.grid.fixed:
        return "a list in every row: [MASK], but for the tokens that were given", "E is L less what was given of a row"
    return "null in every row: all positions start as [MASK]", "E is L in every row"


def windows_snippet(identity: Identity) -> str:
    """Python that turns `rows` into the training windows of this dataset, with datasets and torch alone."""
    grid = identity.grid
    source = 'row["source_tokens"]' + ("" if grid.mask_id is None else f" or [{grid.mask_id}] * {grid.length}")
    start = "random tokens" if grid.mask_id is None else "null is all [MASK]"
    return f"""```python
import torch

def windows(row, n):
    \"\"\"The n windows (t, t + 1/n] of a row: the text at t, and the token that each position jumps to, or -1.\"\"\"
    state = list({source})  # {start}
    for j in range(n):
        x_t, target = list(state), [-1] * {grid.length}
        for step, position, token in zip(row["event_step"], row["event_position"], row["event_token"]):
            if step * n // {grid.steps} == j:
                state[position] = target[position] = token
        yield {{"x_t": torch.tensor(x_t), "t": torch.tensor(j / n), "dt": torch.tensor(1 / n), "target": torch.tensor(target)}}

data = [window for row in rows for window in windows(row, n={gcd(grid.steps, 8)})]  # n: any that divides {grid.steps}
batches = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
```

A network that is trained to predict `target` from `x_t`, `t` and `dt`, where `target` is not -1, is a student that writes in n
steps. Of the package, `tests/examples/windows_datasets.py` has the K candidates and their weights, too; `windows_ray.py` reads
with Ray Data."""


def dataset_card(manifest: DatasetManifest) -> str:
    """The card's text; a function of the manifest alone."""
    identity = manifest.identity
    compass = f"`{identity.compass.kind}` compass" if identity.compass else "no compass"
    shaping = identity.shaping
    how = f"{count(shaping.candidates, 'candidate')} per step, `{shaping.select}`, tau {shaping.tau:g}"
    configs = [default_config(identity), *_arm_configs(identity)]
    head = front_matter({"configs": configs, "tags": TAGS, "trajectories": sizes(identity)})
    calls = "\n".join(f'{arm} = load_dataset("PATH_OR_REPOSITORY", "{arm}", split="train")' for arm in identity.arms)
    return f"""{head}
# Trajectories of a discrete flow matching teacher

{count(manifest.totals.rows, "trajectory")} (arm: {identity.arm}) of {count(identity.grid.length, "token")} over
{count(identity.grid.steps, "step")}, made by tsdfm-pipeline from a `{identity.teacher.source}`-source teacher
with a {compass} ({how}).

```python
from datasets import load_dataset
rows = load_dataset("PATH_OR_REPOSITORY", split="train")
{calls}
print(rows[0]["text"], rows[0]["event_step"][:8])
```

{windows_snippet(identity)}

A trajectory is its source and its events: replaying (`event_position`, `event_token`) in order on the source gives `tokens`.
`manifest.json` holds the full configuration, the models' fingerprints and a checksum per shard.

{reading_notes(identity)}
{column_table(identity)}
"""


def _arm_configs(identity: Identity) -> list[dict[str, Any]]:
    """A config per arm. Arms share their files, so rows are filtered: a config may, while a split is a set of files.

    A dataset of one arm has the config `arms`, too, as on the Hub.
    """
    path = files_pattern(identity)
    if len(identity.arms) == 1:
        return [arm_config(identity.arms[0], path), arms_config({identity.arms[0]: path})]
    return [arm_config(arm, path) | {"filters": [["arm", "==", arm]]} for arm in identity.arms]


def arms_config(splits: dict[Arm, str]) -> dict[str, Any]:
    """The config `arms`: a split per arm, each with files of its own."""
    return {"config_name": ARMS_CONFIG, "data_files": [{"split": arm, "path": path} for arm, path in splits.items()]}
