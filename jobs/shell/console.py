"""What people see (standard error) and what machines read (one JSON object on standard output)."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import click
from pydantic import BaseModel
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from tsdfm.pipeline.text.cleaning import told
from tsdfm.schemas.base import one_line, texts_in
from tsdfm.schemas.corpus import DEFAULT, PYTHON, CorpusConfig
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.terms import Dtype
from tsdfm.schemas.training_record import CorpusFacts
from tsdfm.schemas.words import count

LINE_SECONDS = 5.0  # where there is no terminal: one line so often
FINISHED = "is finished, and has nothing left to be trained"  # of a model's folder
WAIT_SECONDS = 60.0  # between two lines that say what is waited for
# Text from a dataset or a model may hold anything, and must not steer the terminal. Line breaks pass.
BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # marks that turn the direction of what follows
CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code != 10} | dict.fromkeys(
    [*range(0x7F, 0xA0), *BIDI], "\ufffd") | {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)}  # of names not in UTF-8

people = Console(stderr=True, highlight=False, soft_wrap=True)  # progress, remarks, errors
results = Console(highlight=False, soft_wrap=True)  # what was asked for; goes where standard output goes at that time
GAP, EDGES = 3, 2  # blanks between the columns of a table, and at its sides together


LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_ours = logging.getLogger("tsdfm")  # its level is what `--log-level` says


def say(line: str, level: int = logging.INFO) -> None:
    """One line for people, if it is of the level that they want to hear, or above.

    Whatever it quotes, a name with a line break say, it is one line (but for a traceback, at 'debug'), nothing in it steers the
    terminal, and no URI's secrets are told.
    """
    if level >= _least():
        people.print(redacted(line).translate(CONTROLS) if level == logging.DEBUG else _harmless(line), markup=False)


def _least() -> int:
    return _ours.level or logging.INFO


class _Said(logging.Handler):
    """Has log records said, those of libraries with their name."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line of a record; a warning says that it is one."""
        mark = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        ours = record.name.partition(".")[0] == _ours.name
        say(one_line(f"{mark}{'' if ours else record.name + ': '}{record.getMessage()}"), record.levelno)


def set_log_level(name: str) -> None:
    """What is said from now on, within `logged`: one of LEVELS. At 'debug' also what libraries tell of their work ('info')."""
    _ours.setLevel(LEVELS[name])
    root = logging.getLogger()
    if name == "debug" and not any(isinstance(each, _Said) for each in root.handlers):
        root.addHandler(_Said())
        root.setLevel(logging.INFO)


@contextmanager
def logged() -> Iterator[None]:
    """Have log records of this package said as lines, at the level 'info'; afterwards logging is as it was."""
    root = logging.getLogger()
    former = _ours.level, _ours.propagate, root.level
    _ours.addHandler(handler := _Said())
    _ours.setLevel(logging.INFO)
    _ours.propagate = False
    try:
        yield
    finally:
        _ours.removeHandler(handler)
        for each in [each for each in root.handlers if isinstance(each, _Said)]:
            root.removeHandler(each)
        _ours.propagate = former[1]
        _ours.setLevel(former[0])
        root.setLevel(former[2])


def tell(line: str) -> None:
    """One line of what was asked for, on standard output; as `say` in all else."""
    results.print(redacted(line).translate(CONTROLS), markup=False)


def say_corpus(corpus: CorpusConfig, models: Iterable[str] = ()) -> None:
    """Which text a command is about to read: the default is a surprise to who gave none, the more so if models know another.

    `models`: 'embedded' or folders.
    """
    if corpus.path == DEFAULT:
        say(f"corpus: {DEFAULT}, the Bible in Basic English, which comes with this package; --corpus takes a text of yours")
        for name in dict.fromkeys(models):
            _say_if_trained_elsewhere(name)
    elif corpus.path == PYTHON:
        say(f"corpus: {PYTHON}, English prose of the documentation of Python and of the packages installed here")
    else:
        say(f"corpus: {corpus.path}")


def _say_if_trained_elsewhere(name: str) -> None:
    from tsdfm.pipeline.models.folder import trained_on

    theirs = trained_on(name)
    if theirs not in (None, DEFAULT):
        say(f"corpus: {name} was trained on another, {theirs}; --corpus {theirs} takes that")


def say_left_out(facts: CorpusFacts | None) -> None:
    """What was left out of a text that other processes have read; nothing where nothing was, or there was no text."""
    if facts is not None and facts.left_out:
        say(f"corpus: {count(facts.documents, 'document')}; left out: {told(facts.left_out)}")


def say_if_slow(dtype: Dtype, gpu: bool) -> None:
    """Why computing in a dtype will be slow, on a GPU or without one; nothing where it won't."""
    if dtype != "float32" and not gpu:
        say(f"dtype: {dtype} is for GPUs; on a CPU it works, and can be hundreds of times slower than float32")


def emit(report: BaseModel) -> None:
    """Print a report as one machine-readable JSON object on standard output, without the secrets of URIs.

    What a field of `texts_in` holds is a text, of a model or a user, and stays as it is. Where standard output has not all
    characters, or some are none (bytes of a file's name that are not UTF-8), they are escaped as JSON has it.
    """
    data = _untold(report, report.model_dump(mode="json"))
    line = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    click.echo(line if showable(line) else json.dumps(data, separators=(",", ":")))


def showable(words: str) -> bool:
    """Whether standard output has all characters of some words."""
    try:
        words.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _untold(value: object, data: Any) -> Any:
    """The JSON data of a value without the secrets of URIs, but for texts."""
    if isinstance(data, str):
        return redacted(data)
    if isinstance(data, list):
        items = value if isinstance(value, list | tuple) and len(value) == len(data) else [None] * len(data)
        return [_untold(*each) for each in zip(items, data, strict=True)]
    if isinstance(data, dict):
        fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        return {redacted(name): each if name in texts_in(value) else _untold(fields.get(name), each)
                for name, each in data.items()}
    return data


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


def print_whole(table: Table, keys: int = 1) -> None:
    """Print a table on standard output, one row a line: where the terminal is too narrow, in parts that repeat the key columns.

    Args:
        table: with cells of plain text, whatever brackets stand in it: a name of a model, say.
        keys: how many columns, from the left, tell a row from others.
    """
    for columns in _parts([_width(column) for column in table.columns], keys, results.width - EDGES):
        titled = table.title and (columns[-1] < keys or columns[keys] == keys)
        part = Table(title=Text(_harmless(str(table.title)), "bold") if titled else None, title_justify="left", box=table.box,
                     pad_edge=False)
        for index in columns:
            column = table.columns[index]
            part.add_column(Text(_harmless(str(column.header))), justify=column.justify, no_wrap=True, overflow="ellipsis")
        for row, cells in zip(table.rows, zip(*(table.columns[index].cells for index in columns), strict=True), strict=True):
            part.add_row(*(Text(_harmless(str(cell))) for cell in cells), end_section=row.end_section)
        needed = sum(_width(table.columns[index]) + GAP for index in columns) + EDGES
        # A terminal of no width at all, as some CI says, gets lines that are too long for it: no figure is ever cut.
        (results if needed <= results.width else Console(highlight=False, soft_wrap=True, width=needed)).print(part)


def _harmless(words: str) -> str:
    return redacted(one_line(words)).translate(CONTROLS)


def _width(column: Column) -> int:
    return max(cell_len(_harmless(str(cell))) for cell in [column.header, *column.cells])


def _parts(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """The columns of each part: the keys, and as many others as there is room for, at least one."""
    first = list(range(min(keys, len(widths))))
    parts = [list(first)]
    for index in range(len(first), len(widths)):
        taken = sum(widths[each] + GAP for each in [*parts[-1], index]) - GAP
        if taken > room and len(parts[-1]) > len(first):
            parts.append(list(first))
        parts[-1].append(index)
    return parts


def rate(number: float, seconds: float, noun: str = "") -> str:
    """How many a second, a minute or an hour, whichever reads best: '41 trajectories/min', or '41/min' without a noun."""
    gap = " " if noun else ""
    per_second = number / max(1e-9, seconds)
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if per_second * length >= 1 or unit == "h":
            value = per_second * length
            return f"{value:.1f}{gap}{noun}/{unit}" if value < 10 else f"{value:,.0f}{gap}{noun}/{unit}"
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """A time span: '4:05', '1:04:05'."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Ticker:
    """Progress of one piece of work: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, label: str, bars: Bars | None) -> None:
        self.label, self.bars = label, bars
        self.task = None if bars is None else bars.add_task(label, total=None, note="", left="")
        self.started = self.printed = time.monotonic()
        self._first: tuple[int, float] | None = None  # what was done when it was first told, and when
        self._waits = ""

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is a few words for people."""
        self._waits, now = "", time.monotonic()
        left = self._left(done, total, now)
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=done, total=total, note=note, left=left)
        elif done >= total or now - self.printed >= LINE_SECONDS:
            self._line(done, total, f"{note}  {clock(now - self.started)}{left and f', {left}'}")

    def waiting(self, done: int, total: int, what: str) -> None:
        """Nothing goes on, and why: told at once, and again every minute."""
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=done, total=total, note=what, left="")
        elif what != self._waits or time.monotonic() - self.printed >= WAIT_SECONDS:
            self._waits = what
            self._line(done, total, what)

    def _line(self, done: int, total: int, note: str) -> None:
        self.printed = time.monotonic()
        say(f"{self.label}: {done}/{total}  {note}")

    def _left(self, done: int, total: int, now: float) -> str:
        """How fast it goes and when it will be finished, if that can be told: what was done earlier is no measure of speed."""
        if self._first is None:
            self._first = (done, now) if done > 1 else (0, self.started)
        first, since = self._first
        if not first < done:
            return ""
        eta = f", ETA {clock((now - since) / (done - first) * (total - done))}" if done < total else ""
        return rate(done - first, now - since) + eta


@contextmanager
def ticker(label: str) -> Iterator[Ticker]:
    """Show the progress of one piece of work."""
    if not sys.stderr.isatty() or _least() > logging.INFO:
        yield Ticker(label, None)
        return
    # Only the note gives way where the terminal is narrow.
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=12), MofNCompleteColumn(),
               TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
               TimeElapsedColumn(), TextColumn("{task.fields[left]}", markup=False))
    with Bars(*columns, console=Console(stderr=True, highlight=False), expand=True) as bars:
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
