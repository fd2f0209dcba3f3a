"""The model card, README.md of a student: what it was distilled from, how, and how to use it."""

import json
from typing import Any

from tsdfm.pipeline.card import front_matter
from tsdfm.pipeline.citations import BIBTEX
from tsdfm.pipeline.plots import short_names
from tsdfm.schemas.evaluate import Measures, Results
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.publish import PublishConfig

_FIELDS = {"pipeline_tag": "text-generation", "tags": ["discrete-flow-matching", "distillation", "tsdfm"]}
_HUB_DATASET = "hf://datasets/"


def student_card(config: DenoiserConfig, facts: dict[str, Any]) -> str:
    """The card's text; a function of the model's config and its training facts."""
    return front_matter(_FIELDS) + _body(config, facts, "FOLDER")


def published_student_card(
    config: DenoiserConfig, facts: dict[str, Any], publication: PublishConfig, fingerprint: str, results: Results | None,
    *, with_frontier: bool,
) -> str:
    """The card of a model repository; `results` has rows of this student (by `fingerprint`) and of what it is compared with."""
    uris = [entry["uri"] for entry in facts["data"]["datasets"]]
    datasets = sorted({uri.removeprefix(_HUB_DATASET).partition("@")[0] for uri in uris if uri.startswith(_HUB_DATASET)})
    fields = {"license": publication.license, "library_name": "tsdfm-pipeline", **_FIELDS}
    if datasets:
        fields["datasets"] = datasets
    get = f"hf download {publication.repo} --local-dir STUDENT"
    parts = [front_matter(fields) + _body(config, facts, "STUDENT", get)]
    if results is not None:
        parts.append(_results(results, fingerprint))
    if with_frontier:
        parts.append("![Perplexity against entropy over sampling temperatures](frontier.png)\n")
    return "\n".join([*parts, f"## Papers\n\n{BIBTEX}\n"])


def _results(results: Results, fingerprint: str) -> str:
    """A table of all rows; those of this student in bold, others by the last part of their name."""
    judges, models = short_names(list(results.judges)), short_names(list(results.settings.model))
    columns = ["model", "steps", "T", *(f"ppl, {judges[name].rpartition('/')[2]}" for name in results.judges), "entropy, bits",
               "distinct-2", "distinct-4", "self-BLEU", "NFE"]
    lines = [columns, ["---"] * len(columns)]
    lines += [["real held-out text", "", "", *_figures(row, results), ""] for row in results.reference]
    for row in results.rows:
        name = "**this student**" if row.fingerprint == fingerprint else models[row.model].rpartition("/")[2]
        lines.append([name, str(row.steps), f"{row.temperature:g}", *_figures(row, results), f"{row.nfe:.1f}"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (f"## Results\n\n{results.settings.samples} texts a row; perplexity under each judge, with its 95 % bootstrap "
            f"interval over texts.\n\n{table}\n")


def _figures(row: Measures, results: Results) -> list[str]:
    found = [row.judges[name] for name in results.judges]
    return [*(f"{each.perplexity:.1f} ({each.low:.1f}-{each.high:.1f})" for each in found), f"{row.entropy_bits:.3f}",
            f"{row.distinct_2:.3f}", f"{row.distinct_4:.3f}", f"{row.self_bleu:.3f}"]


def _body(config: DenoiserConfig, facts: dict[str, Any], folder: str, get: str = "") -> str:
    settings = facts["config"]
    budgets = ", ".join(settings["budgets"])
    datasets = "\n".join(
        f"| `{entry['identity'][:16]}` | {entry['rows']} | {settings['data']['arm']} |" for entry in facts["data"]["datasets"])
    return f"""
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
{get}{chr(10) if get else ""}tsdfm-pipeline sample --model {folder} --steps 8 -n 4
tsdfm-pipeline evaluate --model {folder} --steps 1,2,4,8,16
tsdfm-pipeline generate --teacher {folder} --steps 16 --out ROUND2
```

The whole config:

```json
{json.dumps(settings, indent=2, sort_keys=True)}
```
"""
