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
    outcome, lines = run.outcome, run.outcome.stderr.strip("\n").split("\n")
    errors = [line for line in lines if line.startswith("Error: ")]
    if run.aside:
        yield f"written past the program to standard error: {run.aside[:300]!r}"
    for word in ("Traceback", "this is a defect", "Error: unexpected"):
        if word in outcome.stderr:
            yield f"{word!r} in: {lines[-1][:600]}"
    if outcome.code == 0:
        if errors:
            yield f"exit code 0, and an error: {errors[0][:300]}"
        return
    if outcome.code not in (1, 2):
        yield f"exit code {outcome.code}: {outcome.stderr[-300:]}"
    if len(errors) != 1 or lines[-1] != errors[0]:
        yield f"not one line of error, at the end: {outcome.stderr[-600:]!r}"
    if outcome.stdout:
        yield f"an error, and on standard output {outcome.stdout[:200]!r}"
    longest = max(lines, key=len)
    if len(longest) > LONGEST:
        yield f"a line of {len(longest)} characters: {longest[:300]}..."
    if STEERING.search(outcome.stderr.replace("\n", "")):
        yield f"control characters reach the terminal: {outcome.stderr[-300:]!r}"
    if "--set" not in lines[-1] and not any(str(path) in outcome.stderr or path.name in outcome.stderr for path in [folder, *folder.rglob("*")]):
        yield f"names no file: {lines[-1][:300]}"
