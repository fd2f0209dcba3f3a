"""The model card, README.md of a student's folder: what it was distilled from, how, and how to use it."""

import json

from tsdfm.pipeline.dataset.card import front_matter
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.training_record import StudentRecord

FIELDS = {"pipeline_tag": "text-generation", "tags": ["discrete-flow-matching", "distillation", "tsdfm"]}


def student_card(config: DenoiserConfig, record: StudentRecord) -> str:
    """The card's text; a function of the model's config and how it was made."""
    return front_matter(FIELDS) + card_body(config, record, "FOLDER")


def card_body(config: DenoiserConfig, record: StudentRecord, folder: str, get: str = "") -> str:
    """The card below its YAML head; `folder` is how its commands name the student, `get` the command that brings it there."""
    settings = record.config
    budgets = settings.budgets or {}
    datasets = "\n".join(f"| `{entry.identity[:16]}` | {entry.rows} | {settings.data.arm} |" for entry in record.data.datasets)
    return f"""
# A few-step student of a discrete flow matching teacher

Writes {config.length} tokens over a vocabulary of {config.vocab_size} ids ({config.source} source) in 1 to
{max(budgets)} steps. Distilled by tsdfm-pipeline with the objective
`{settings.objective}` for the step budgets {', '.join(map(str, budgets))}, {settings.optim.steps} updates of
{settings.optim.batch_size} trajectories, from frozen trajectories:

| dataset (identity, sha256) | trajectories | arm |
|---|---|---|
{datasets}
{_given(record)}
Started from the weights `{record.init[:16]}` (fingerprint, sha256).
{_held_out(record)}
```sh
{get}{chr(10) if get else ""}tsdfm-pipeline sample --model {folder} --steps 8 -n 4
tsdfm-pipeline evaluate --model {folder} --steps 1,2,4,8,16
tsdfm-pipeline generate --teacher {folder} --steps 16 --out ROUND2
```

The whole config:

```json
{json.dumps(settings.model_dump(mode="json"), indent=2, sort_keys=True)}
```
"""


def _given(record: StudentRecord) -> str:
    """What it means that trajectories go on from prompts, or from the block of a text before them, where some do."""
    datasets = record.data.datasets
    given = [entry for entry in datasets if entry.prompts is not None or entry.blocks is not None]
    if not given:
        return ""
    which = "These" if len(given) == len(datasets) else f"Those of {', '.join(f'`{entry.identity[:16]}`' for entry in given)}"
    what = [*(["prompts"] if any(entry.prompts for entry in given) else []),
            *(["the end of the block before (texts lie in blocks)"] if any(entry.blocks for entry in given) else [])]
    return f"""
{which} go on from {' or '.join(what)}: the student has learnt to write what follows them, *given* them, and was never asked for
a word that was given. Losses on such trajectories, those of held-out ones too, are of continuations.
"""


def _held_out(record: StudentRecord) -> str:
    """What it is worth on held-out trajectories, where there were some."""
    found = record.held_out
    if found is None:
        return ""
    share = "" if found.share is None else (
        f" It carries {100 * found.share:.1f} % of the compass's\npreference among candidates (0 %: none; 100 %: all of it).")
    if found.cooled is not None:
        share += f" Its start alone, sampled cooler, carries {100 * found.cooled:.1f} %."
    return f"""
On {found.trajectories} held-out trajectories its loss is {found.loss:.4f} nats, after {found.updates} updates.{share}
"""
