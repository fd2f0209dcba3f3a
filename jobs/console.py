"""What people see (standard error) and what machines read (one JSON object on standard output)."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 5.0  # where there is no terminal: one line so often

people = Console(stderr=True, highlight=False, soft_wrap=True)


def emit(data: object) -> None:
    """Print one machine-readable JSON object on standard output."""
    click.echo(json.dumps(data, sort_keys=True))


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

    def __init__(self, label: str, total: int, bar: Progress | None) -> None:
        self.label, self.total, self.bar = label, total, bar
        self.task = bar.add_task(label, total=total, note="") if bar else None
        self.started = self.printed = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is a few words for people."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        if done >= self.total or now - self.printed >= LINE_SECONDS:
            self.printed = now
            people.print(f"{self.label}: {done}/{self.total}  {note}  {now - self.started:.0f} s", markup=False)


@contextmanager
def ticker(label: str, total: int) -> Iterator[Ticker]:
    """Show the progress of a piece of work of `total` units."""
    if not sys.stderr.isatty():
        yield Ticker(label, total, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=people) as bar:
        yield Ticker(label, total, bar)
