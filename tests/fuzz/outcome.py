"""What a run of the command line, or of a library function, said; and what is wrong with how it ended."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import Outcome
from tsdfm.jobs.cli import main
from tsdfm.jobs.shell.console import CONTROLS
from tsdfm.schemas.base import InputError, WorkError

LONGEST = 2000  # characters of one line that is still clear
UNFORESEEN = ("Traceback", "this is a defect", "Error: unexpected")
STEERING = re.compile(f"[{''.join(chr(code) for code in CONTROLS)}]")


@dataclass(frozen=True)
class Run:
    """One run: how it was asked for, how it ended, and what libraries wrote past Python to the process's standard error."""

    asked: str
    outcome: Outcome
    aside: str


@contextlib.contextmanager
def _aside(into: list[str]) -> Iterator[None]:
    """Catch what is written to the process's own standard error: panics of Rust, aborts of C++."""
    kept = os.dup(2)
    with open(os.environ["FUZZ_ASIDE"], "w+b", buffering=0) as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            into.append(file.read().decode(errors="replace"))


def command(*arguments: object) -> Run:
    """Run the command line in this process, as a user would."""
    sys.argv = ["tsdfm-pipeline", *map(str, arguments)]
    stdout, stderr, code, aside = io.StringIO(), io.StringIO(), 0, list[str]()
    with _aside(aside), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
    return Run(" ".join(sys.argv), Outcome(code, stdout.getvalue(), stderr.getvalue()), aside[0])


def library(asked: str, work: Callable[[], object]) -> Run:
    """Call what a command calls; exit codes as the command line gives them. Anything but its two kinds of error is raised."""
    said, code, aside = "", 0, list[str]()
    with _aside(aside):
        try:
            work()
        except InputError as error:
            said, code = f"Error: {error}", 2
        except WorkError as error:
            said, code = f"Error: {error}", 1
    return Run(asked, Outcome(code, "", said.translate(CONTROLS)), aside[0])


def faults(run: Run, folder: Path) -> Iterator[str]:
    """What is wrong with how a run on files of `folder` ended."""
    said = run.outcome.stderr
    lines = said.strip("\n").split("\n")
    longest = max(lines, key=len)
    checks = {
        f"written past the program to standard error: {run.aside[:300]!r}": not run.aside,
        f"a line of {len(longest)} characters: {longest[:300]}...": len(longest) <= LONGEST,
        f"control characters reach the terminal: {said[-300:]!r}": not STEERING.search(said.replace("\n", "")),
        f"an error that nobody foresaw: {lines[-1][:600]}": not any(word in said for word in UNFORESEEN),
    }
    yield from (what for what, held in checks.items() if not held)
    yield from _ending(run.outcome, lines, folder)


def _ending(outcome: Outcome, lines: list[str], folder: Path) -> Iterator[str]:
    """What is wrong with the last line and the exit code."""
    errors = [line for line in lines if line.startswith("Error: ")]
    named = "--set" in lines[-1] or any(str(path) in outcome.stderr or path.name in outcome.stderr for path in [folder, *folder.rglob("*")])
    success = {f"exit code 0, and an error: {errors[:1]}": not errors}
    failure = {
        f"exit code {outcome.code}: {outcome.stderr[-300:]}": outcome.code in (1, 2),
        f"not one line of error, at the end: {outcome.stderr[-600:]!r}": errors == lines[-1:],
        f"an error, and on standard output {outcome.stdout[:200]!r}": not outcome.stdout,
        f"names no file: {lines[-1][:300]}": named,
    }
    yield from (what for what, held in (failure if outcome.code else success).items() if not held)
