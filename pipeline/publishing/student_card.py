"""The card of a published student: that of its folder, with what `evaluate` measured."""

from dataclasses import dataclass

from tsdfm.pipeline.dataset.card import front_matter
from tsdfm.pipeline.evaluation.figures import ppl_interval, short_names
from tsdfm.pipeline.publishing.citations import BIBTEX
from tsdfm.pipeline.training.student_card import FIELDS, card_body
from tsdfm.schemas.evaluate import Measures, Results
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.publish import PublishConfig
from tsdfm.schemas.training_record import StudentRecord

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


def published_student_card(student: Published) -> str:
    """The README.md of a student's model repository on the Hub: front matter, how it was made, figures, papers."""
    publication = student.publication
    uris = [entry.uri for entry in student.record.data.datasets]
    datasets = sorted({uri.removeprefix(_HUB_DATASET).partition("@")[0] for uri in uris if uri.startswith(_HUB_DATASET)})
    fields = {"license": publication.license, "library_name": "tsdfm-pipeline", **FIELDS}
    if datasets:
        fields["datasets"] = datasets
    get = f"hf download {publication.repo} --local-dir STUDENT"
    parts = [front_matter(fields) + card_body(student.config, student.record, "STUDENT", get)]
    if student.results is not None:
        parts.append(_results(student.results, student.fingerprint))
    if student.frontier:
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
    return [*map(ppl_interval, found), f"{row.entropy_bits:.3f}",
            f"{row.distinct_2:.3f}", f"{row.distinct_4:.3f}", f"{row.self_bleu:.3f}"]
