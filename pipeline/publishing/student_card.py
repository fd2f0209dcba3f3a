"""The card of a published student: that of its folder, with what `evaluate` measured."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsdfm.pipeline.evaluation.figures import corrected, maybe, ppl_interval, share, short_names
from tsdfm.pipeline.publishing.citations import BIBTEX
from tsdfm.pipeline.training.student_card import FIELDS, card_body
from tsdfm.schemas.evaluate import Results, Row
from tsdfm.schemas.model import MODELING, DenoiserConfig
from tsdfm.schemas.publish import PublishConfig
from tsdfm.schemas.training_record import StudentRecord

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_HUB_DATASET = "hf://datasets/"


@dataclass(frozen=True)
class Published:
    """All that the card of a model repository tells of a student."""

    config: DenoiserConfig
    record: StudentRecord
    fingerprint: str
    publication: PublishConfig
    results: Results | None  # rows of this student (by `fingerprint`) and of what it is compared with
    frontier: bool  # whether frontier.png stands beside the card
    transformers: bool  # whether the transformers library can open it


def published_student_card(student: Published) -> str:
    """The README.md of a student's model repository on the Hub: front matter, how it was made, figures, papers."""
    publication = student.publication
    get = f"hf download {publication.repo} --local-dir STUDENT"
    parts = [_head(student) + card_body(student.config, student.record, "STUDENT", get)]
    if student.transformers:
        parts.append(_loading(publication.repo))
    if student.results is not None:
        parts.append(_results(student.results, student.fingerprint))
    if student.frontier:
        parts.append("![Perplexity against entropy over sampling temperatures](frontier.png)\n")
    return "\n".join([*parts, f"## Papers\n\n{BIBTEX}\n"])


def _head(student: Published) -> str:
    """The YAML head. Fill-mask is what transformers itself does with a student that knows [MASK]; others only `generate`."""
    from huggingface_hub import ModelCardData

    uris = [entry.uri for entry in student.record.data.datasets]
    datasets = sorted({uri.removeprefix(_HUB_DATASET).partition("@")[0] for uri in uris if uri.startswith(_HUB_DATASET)})
    fills = student.transformers and student.config.mask_id is not None
    found = _measured(student.results, student.fingerprint) if student.results is not None else []
    data = ModelCardData(
        license=student.publication.license, library_name="transformers" if fills else "tsdfm-pipeline",
        pipeline_tag="fill-mask" if fills else str(FIELDS["pipeline_tag"]),
        tags=[*FIELDS["tags"], *(["custom_code"] if student.transformers else [])], datasets=datasets or None,
        model_name=student.publication.repo.rpartition("/")[2] if found else None, eval_results=found or None)
    return f"---\n{data.to_yaml()}\n---\n"


def _measured(results: Results, fingerprint: str) -> list["EvalResult"]:
    """The figures of this student's rows, for the Hub's `model-index`: perplexities, and the entropy to read them by."""
    from huggingface_hub import EvalResult

    found = []
    for row in results.rows:
        if row.fingerprint != fingerprint:
            continue
        figures = [("perplexity", f"perplexity under {name.rpartition('/')[2]}", row.judges[name].perplexity)
                   for name in results.judges]
        how = {"steps": row.steps, "temperature": row.temperature, "texts": row.samples}
        texts = f"its own {'texts' if row.given is None else 'continuations of prompts'}, {row.steps} steps, temperature " \
                f"{row.temperature:g}"
        how |= {} if row.given is None else {"prompt_tokens": round(row.given, 1)}
        found += [EvalResult(
            task_type="text-generation", dataset_type="generated", dataset_name=texts, dataset_args=how, metric_type=kind,
            metric_name=name, metric_value=round(value, 4),
        ) for kind, name, value in [*figures, ("entropy", "unigram entropy, bits", row.entropy_bits), *_besides(row)]]
    return found


def _besides(row: Row) -> list[tuple[str, str, float]]:
    """What a row says that not every evaluation measures: metric type, name and value."""
    found = [] if row.memorised is None else [("memorisation", "share of 8-grams that the corpus has", row.memorised)]
    if row.in_trajectories is not None:
        found.append(("memorisation_of_trajectories", "share of 8-grams that its trajectories have", row.in_trajectories))
    for name, each in row.distances.items():
        judge = name.rpartition("/")[2]
        found += [("mauve", f"MAUVE, features of {judge}", each.mauve.value),
                  ("frechet", f"Fréchet distance, features of {judge}", each.frechet.value)]
    return found


def _loading(repo: str) -> str:
    return f"""## Without tsdfm-pipeline

`{MODELING}.py` of this repository needs torch and transformers alone; it is code, so look at it before you trust it. For the
same seed, `generate` writes the texts that `tsdfm-pipeline sample` writes.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{repo}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{repo}", trust_remote_code=True)
print(tokenizer.batch_decode(model.generate(steps=8, number=4, seed=0)))
prompt = tokenizer("Once upon a time", add_special_tokens=False).input_ids
print(tokenizer.batch_decode(model.generate(prompt, steps=8)))
```
"""


def _results(results: Results, fingerprint: str) -> str:
    """A table of all rows; those of this student in bold, others by the last part of their name."""
    judges, models = short_names(list(results.judges)), short_names(list(results.settings.model))
    names = {name: judges[name].rpartition("/")[2] for name in results.judges}
    far = [f"{what}, {names[name]}" for name in names if results.settings.distances for what in ("MAUVE", "Fréchet")]
    columns = ["model", "steps", "T", *(f"ppl, {name}" for name in names.values()), "entropy, bits", "distinct-2", "distinct-4",
               "self-BLEU", "memorised", *(["in trajectories"] if results.in_trajectories else []), *far, "NFE"]
    lines = [columns, ["---"] * len(columns)]
    lines += [["real held-out text", "", "", *_figures(row, results), ""] for row in results.reference]
    lines += [[f"naive: {row.model}", "", "", *_figures(row, results), ""] for row in results.naive]
    for row in results.rows:
        name = "**this student**" if row.fingerprint == fingerprint else models[row.model].rpartition("/")[2]
        lines.append([name, str(row.steps), f"{row.temperature:g}", *_figures(row, results), f"{row.nfe:.1f}"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [f"{results.settings.samples} texts a row; perplexity under each judge, with its 95 % bootstrap interval over "
             "texts."]
    given = next((row.given for row in results.rows if row.given is not None), None)
    if given is not None:
        notes.append(f"All figures are of what stands after a prompt ({given:.1f} tokens on average), given that: its own "
                     "tokens are read and not counted. Compare them with rows of the same prompts only.")
    if any(row.memorised is not None for row in results.rows):
        notes.append("*Memorised* is the share of a row's 8-grams that the corpus's training text has.")
    if results.in_trajectories:
        notes.append("*In trajectories* is the share that stands in a text of the trajectories that a student learnt from.")
    if results.naive:
        notes.append("Naive samplers are made from that text without a network, each bad in a known way: a measure that ranks "
                     "one beside real text does not see it.")
    return f"## Results\n\n{' '.join(notes)}\n\n{table}\n{_bounds(results, fingerprint)}"


def _bounds(results: Results, fingerprint: str) -> str:
    """A table of the bounds of this student's likelihood; nothing where there are none."""
    own = [row for row in results.likelihood if row.fingerprint == fingerprint]
    if not own:
        return ""
    text = own[0].text.rpartition("/")[2]
    lines = ["| steps | nats/token | perplexity | bits/byte |", "| --- | --- | --- | --- |",
             *(f"| {row.steps} | {row.nats_per_token:.4f} | {ppl_interval(row)} | {maybe(row.bits_per_byte, '.4f')} |"
               for row in own)]
    return (f"\nUpper bounds of the perplexity of {own[0].texts} texts of {text}, for the sampler in so many steps:\n\n"
            + "\n".join(lines) + "\n")


def _figures(row: Row, results: Results) -> list[str]:
    found = [row.judges[name] for name in results.judges]
    return [*map(ppl_interval, found), f"{row.entropy_bits:.3f}",
            f"{row.distinct_2:.3f}", f"{row.distinct_4:.3f}", f"{row.self_bleu:.3f}", share(row.memorised),
            *([share(row.in_trajectories)] if results.in_trajectories else []),
            *(corrected(each) for name in results.judges if results.settings.distances
              for each in (row.distances[name].mauve, row.distances[name].frechet))]
