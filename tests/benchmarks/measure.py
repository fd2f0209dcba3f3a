"""What every benchmark shares: measured sides in processes of their own, ratios, tables and JSON.

Each side of a comparison lives in a fresh process with a fixed thread count, so that neither memory peaks nor
allocator state mix. Sides run in turn, A B A B, and only ratios within one round are compared, by wall clock
and by CPU time. On a busy machine CPU time hardly notices the neighbours, but with two threads it leaves out
how long they wait for each other: there only wall clock counts, on a machine that is idle or beside processes
that the benchmark itself starts. Peaks are resident bytes above a side's resting memory (its
models, its libraries already paged in), from the kernel's own high-water mark. Linux only.

The benchmarks beside this file import it; they are run as `python tests/benchmarks/NAME.py`.
"""

import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as every command has it; read where torch is loaded, of each side too

import torch

MIB = 1 << 20

Piece = Callable[[], dict[str, float]]  # does a piece of work; returns what it counted: {"tokens": 512, ...}
Builder = Callable[[], Piece]  # builds a side's models; picklable (a module-level function, or its partial)


# -- memory ----------------------------------------------------------------------------------------------

def resting_bytes() -> int:
    """Resident memory of this process now, after giving freed memory back."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library without malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak_bytes() -> int:
    """The high-water mark of this process's resident memory since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Start a new high-water mark; where the kernel forbids it, the mark is that of the process's life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


# -- one side of a comparison ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Sample:
    """One run of a piece: seconds, peak bytes above resting memory, and what the piece counted."""

    seconds: float  # wall clock
    cpu_seconds: float  # of all threads, spinning included
    extra_bytes: int
    counts: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.counts["tokens"] / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Tokens per CPU second."""
        return self.counts["tokens"] / self.cpu_seconds


class Side:
    """A fresh process that builds its models once and runs its piece on request; a context manager.

    `warm_up` builds a tiny likeness whose piece is run first, so that the libraries are paged in and the
    thread pool stands before resting memory is read.
    """

    def __init__(self, build: Builder, warm_up: Builder, threads: int) -> None:
        # A clean server that has imported the libraries, and forks: each side starts in milliseconds.
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", "tsdfm.pipeline.flow.rollout"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, warm_up, threads), daemon=True)
        self._process.start()
        theirs.close()

    def run(self) -> Sample:
        """Run the piece once."""
        try:
            self._pipe.send("run")
            sample: Sample = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise RuntimeError("a measured process died; its error is above") from None
        return sample

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, build: Builder, warm_up: Builder, threads: int) -> None:
    torch.set_num_threads(threads)
    warm_up()()
    piece = build()
    resting = resting_bytes()
    with suppress(EOFError):
        while pipe.recv():
            reset_peak()
            start, cpu_start = time.perf_counter(), time.process_time()
            counts = piece()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            pipe.send(Sample(seconds, cpu_seconds, max(0, peak_bytes() - resting), counts))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes beside, each of which computes all the time."""
    with ExitStack() as stack:
        for _ in range(processes):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def interleave(
    builders: Mapping[str, tuple[Builder, Builder]], rounds: int, threads: int
) -> dict[str, list[Sample]]:
    """Run every side once per round, in turn: {name: (build, warm_up)} -> {name: a sample per round}."""
    samples: dict[str, list[Sample]] = {name: [] for name in builders}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Side(*pair, threads)) for name, pair in builders.items()}
        for _ in range(rounds):
            for name, side in sides.items():
                samples[name].append(side.run())
    return samples


@dataclass(frozen=True)
class Ratio:
    """Of the ratios within each round: the median, the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, over: Sequence[float], under: Sequence[float]) -> "Ratio":
        """Two sides' numbers, round by round."""
        ratios = [a / b for a, b in zip(over, under, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g}-{self.most:.3g})"


# -- reporting -------------------------------------------------------------------------------------------

def say(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """An aligned table for people; the first column to the left, the others to the right."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    say(f"\n{title}")
    for first, *others in cells:
        padded = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        say("  ".join([first.ljust(widths[0]), *padded]))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def report(result: Mapping[str, object], file: Path | None) -> None:
    """Print one JSON object on standard output, and write it to `file` if given."""
    text = json.dumps(result, indent=2, sort_keys=True)
    if file is not None:
        file.write_text(text + "\n")
    print(text)


def machine(threads: int) -> dict[str, object]:
    """What the numbers depend on: cores, load, threads, versions."""
    return {
        "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "threads": threads,
        "torch": torch.__version__, "python": platform.python_version(), "processor": _processor(),
    }


def _processor() -> str:
    """Its name and, since a virtual one may have little of a name, family and model."""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    named = [f"{name} {facts[field]}" for name, field in (("family", "cpu family"), ("model", "model")) if field in facts]
    return ", ".join([facts.get("model name", platform.machine()), *named])
