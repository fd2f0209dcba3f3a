"""What people see (standard error) and what machines read (one JSON object on standard output)."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout

import click
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from tsdfm.pipeline.text.cleaning import told
from tsdfm.schemas.corpus import BUILT_IN, CorpusConfig
from tsdfm.schemas.training_record import CorpusFacts
from tsdfm.schemas.words import count

LINE_SECONDS = 5.0  # where there is no terminal: one line so often
# Text from a dataset or a model may hold anything, and must not steer the terminal. Line breaks pass.
BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # marks that turn the direction of what follows
CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code != 10} | dict.fromkeys(
    [*range(0x7F, 0xA0), *BIDI], "\ufffd")

people = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line for people; whatever it quotes, nothing in it steers the terminal."""
    people.print(line.translate(CONTROLS), markup=False)


def say_corpus(corpus: CorpusConfig) -> None:
    """Which text a command is about to read: the built-in one is a surprise to who gave none."""
    if corpus.path == BUILT_IN:
        say("corpus: the built-in one, English prose of the documentation of Python and of the packages installed here; "
            "--corpus takes a text of yours")
    else:
        say(f"corpus: {corpus.path}")


def say_left_out(facts: CorpusFacts | None) -> None:
    """What was left out of a text that other processes have read; nothing where nothing was, or there was no text."""
    if facts is not None and facts.left_out:
        say(f"corpus: {count(facts.documents, 'document')}; left out: {told(facts.left_out)}")


def emit(report: BaseModel) -> None:
    """Print a report as one machine-readable JSON object on standard output."""
    click.echo(report.model_dump_json())


@contextmanager
def output_kept_for_json() -> Iterator[None]:
    """Libraries print some warnings to standard output, which is for JSON alone: meanwhile they go to standard error."""
    with redirect_stdout(sys.stderr):
        yield


def figures_table(title: str, columns: Sequence[str]) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def print_whole(table: Table) -> None:
    """Print a table with no column cut: a narrow terminal wraps the lines."""
    whole = Measurement.get(people, people.options.update(width=1000), table).maximum
    Console(stderr=True, highlight=False, width=max(people.width, whole), soft_wrap=True).print(table)


class Ticker:
    """Progress of one piece of work: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, label: str, bars: Bars | None) -> None:
        self.label, self.bars = label, bars
        self.task = None if bars is None else bars.add_task(label, total=None, note="")
        self.started = self.printed = time.monotonic()

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is a few words for people."""
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if done >= total or now - self.printed >= LINE_SECONDS:
            self.printed = now
            say(f"{self.label}: {done}/{total}  {note}  {now - self.started:.0f} s")


@contextmanager
def ticker(label: str) -> Iterator[Ticker]:
    """Show the progress of one piece of work."""
    if not sys.stderr.isatty():
        yield Ticker(label, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=people) as bars:
        yield Ticker(label, bars)


class Stages(ExitStack):
    """The progress of work in stages, one ticker after another: a `schemas.progress.Progress`."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = ""
        self._ticker: Ticker | None = None

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of a stage."""
        if stage != self._stage or self._ticker is None:
            self.close()
            self._stage, self._ticker = stage, self.enter_context(ticker(stage))
        self._ticker.update(done, total, note)
