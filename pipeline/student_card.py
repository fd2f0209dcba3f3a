"""The model card, README.md of a student: what it was distilled from, how, and how to use it."""

import json
from typing import Any

from tsdfm.schemas.model import DenoiserConfig

_HEAD = """---
pipeline_tag: text-generation
tags:
- discrete-flow-matching
- distillation
- tsdfm
---
"""


def student_card(config: DenoiserConfig, facts: dict[str, Any]) -> str:
    """The card's text; a function of the model's config and its training facts."""
    settings = facts["config"]
    budgets = ", ".join(settings["budgets"])
    datasets = "\n".join(
        f"| `{entry['identity'][:16]}` | {entry['rows']} | {settings['data']['arm']} |" for entry in facts["data"]["datasets"])
    return f"""{_HEAD}
# A few-step student of a discrete flow matching teacher

Writes {config.length} tokens over a vocabulary of {config.vocab_size} ids ({config.source} source) in 1 to
{max(int(n) for n in settings['budgets'])} steps. Distilled by tsdfm-pipeline with the objective
`{settings['objective']}` for the step budgets {budgets}, {settings['optim']['steps']} updates of
{settings['optim']['batch_size']} trajectories, from frozen trajectories:

| dataset (identity, sha256) | trajectories | arm |
|---|---|---|
{datasets}

Started from the weights `{facts['init'][:16]}` (fingerprint, sha256).

```sh
tsdfm-pipeline sample --model FOLDER --steps 8 -n 4
tsdfm-pipeline evaluate --model FOLDER --steps 1,2,4,8,16
tsdfm-pipeline generate --teacher FOLDER --steps 16 --out ROUND2
```

The whole config:

```json
{json.dumps(settings, indent=2, sort_keys=True)}
```
"""
