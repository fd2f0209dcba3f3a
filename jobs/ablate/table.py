"""The table of a sweep, in three forms: CSV and Parquet for programs, Markdown for people.

Nothing in them depends on when, where or in which order the trials ran, so a sweep that was killed and finished ends in the
same bytes as one that was not. Wall times, which do, stand in a file of their own.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tsdfm.pipeline.evaluation.figures import count, maybe, plus_minus, ppl, ppl_interval, short_names
from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy
from tsdfm.schemas.ablate import Effect, TrialRow

MEASURES = ("entropy_bits", "entropy_standard_error", "distinct_2", "distinct_4", "self_bleu", "nfe")
Run = tuple[str, int | None]  # trial and seed


def table_of(rows: Sequence[TrialRow], factors: Sequence[str]) -> pa.Table:
    """One row per trial, step count and temperature; a level is text, null in the rows that are of no trial."""
    judges = short_names(list(rows[0].judges))
    columns: dict[str, pa.Array] = {"trial": pa.array([row.trial for row in rows], pa.string())}
    for factor in factors:
        columns[factor] = pa.array([row.levels.get(factor) for row in rows], pa.string())
    columns["seed"] = pa.array([row.seed for row in rows], pa.int64())
    columns["steps"] = pa.array([row.steps for row in rows], pa.int32())
    columns["temperature"] = pa.array([row.temperature for row in rows], pa.float64())
    for judge, name in judges.items():
        for part, suffix in (("perplexity", ""), ("low", "_low"), ("high", "_high")):
            columns[f"perplexity{suffix} ({name})"] = pa.array([getattr(row.judges[judge], part) for row in rows], pa.float64())
    columns |= {name: pa.array([getattr(row, name) for row in rows], pa.float64()) for name in MEASURES}
    columns["parameters"] = pa.array([row.parameters for row in rows], pa.int64())
    return pa.table(columns)


def effects_table(effects: Sequence[Effect]) -> pa.Table:
    """The effects as an Arrow table, a row each, whose columns are the fields of `Effect`."""
    return pa.Table.from_pylist([effect.model_dump() for effect in effects])


def csv_bytes(table: pa.Table) -> bytes:
    """A table as CSV, with a header."""
    sink = io.BytesIO()
    pacsv.write_csv(table, sink, pacsv.WriteOptions(quoting_style="needed"))
    return sink.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def cells(row: TrialRow, factors: Sequence[str]) -> list[str]:
    """The figures of one row of the table as text, a cell for each of `headings`; empty where there is no figure."""
    name = {"real": "real text", "start": "start"}.get(row.trial, row.trial[:8])
    return [name, *(row.levels.get(factor, "") for factor in factors), maybe(row.seed, "d", ""), maybe(row.steps, "d", ""),
            maybe(row.temperature, "g", ""), *map(ppl_interval, row.judges.values()),
            plus_minus(row.entropy_bits, row.entropy_standard_error, 3), f"{row.distinct_2:.3f}", f"{row.distinct_4:.3f}",
            f"{row.self_bleu:.3f}", maybe(row.nfe, ".1f", ""), maybe(row.parameters, ",d", "")]


def headings(rows: Sequence[TrialRow], factors: Sequence[str]) -> list[str]:
    """The columns' names as people read them, for rows that `cells` has made text; judges are those of the first row."""
    judges = short_names(list(rows[0].judges))
    return ["trial", *factors, "seed", "n", "T", *(f"ppl, {name}" for name in judges.values()), "entropy, bits", "distinct-2",
            "distinct-4", "self-BLEU", "NFE", "parameters"]


def markdown(rows: Sequence[TrialRow], factors: Sequence[str], effects: Sequence[Effect]) -> str:
    """The table, perplexities at equal entropy where several temperatures were sampled, and the effects."""
    lines = _grid(headings(rows, factors), [cells(row, factors) for row in rows])
    for steps in sorted({row.steps for row in rows if row.steps is not None}):
        compared = equal_entropy_grid(rows, factors, steps)
        if compared is not None:
            entropy, (heading, *each) = compared
            where = f"{entropy:.3f} bits, {count(steps, 'step')} (interpolated between temperatures)"
            lines += ["", f"At equal entropy, {where}:", "", *_grid(heading, each)]
    if effects:
        head = ["factor", "level", "against", "n", "T", "measure", "difference (95 % interval)", "pairs"]
        lines += ["", *_grid(head, [effect_cells(effect) for effect in effects])]
    return "\n".join(lines) + "\n"


def effect_cells(effect: Effect) -> list[str]:
    """One effect as people read it; a perplexity as a ratio, too."""
    return [effect.factor, effect.level, effect.against, str(effect.steps), f"{effect.temperature:g}", effect.measure,
            f"{effect.difference:+.3f} ({effect.low:+.3f} to {effect.high:+.3f})", str(effect.pairs)]


def at_equal_entropy(rows: Sequence[TrialRow], steps: int) -> tuple[float, dict[Run, dict[str, float]]] | None:
    """Where all trials are compared fairly: an entropy, and (trial, seed) -> judge -> perplexity there, at one step count.

    The entropy, in bits, is the middle of the range that the curves of all trials share over the sampling temperatures; None
    where they share none.
    """
    curves: dict[Run, list[TrialRow]] = {}
    for row in rows:
        if row.steps == steps:
            curves.setdefault((row.trial, row.seed), []).append(row)
    low = max(min(row.entropy_bits for row in curve) for curve in curves.values())
    high = min(max(row.entropy_bits for row in curve) for curve in curves.values())
    if low >= high:
        return None
    entropy = (low + high) / 2
    found: dict[Run, dict[str, float]] = {}
    for key, curve in curves.items():
        for judge in curve[0].judges:
            at = perplexity_at_entropy([(row.entropy_bits, row.judges[judge].perplexity) for row in curve], entropy)
            assert at is not None  # every curve reaches it
            found.setdefault(key, {})[judge] = at
    return entropy, found


def equal_entropy_grid(rows: Sequence[TrialRow], factors: Sequence[str], steps: int) -> tuple[float, list[list[str]]] | None:
    """`at_equal_entropy` as people read it: the entropy, and a heading and a line per trial."""
    compared = at_equal_entropy(rows, steps)
    if compared is None:
        return None
    entropy, found = compared
    named = {(row.trial, row.seed): row for row in rows}
    judges = short_names(list(rows[0].judges))
    lines = [["trial", *factors, "seed", *(f"ppl, {name}" for name in judges.values())]]
    for key, perplexities in found.items():
        lines.append([*cells(named[key], factors)[: len(factors) + 2], *(ppl(perplexities[judge]) for judge in judges)])
    return entropy, lines


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
