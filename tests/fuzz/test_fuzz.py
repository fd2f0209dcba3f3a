"""Whatever is in a file, reading it ends in success or in one clear line, soon, in little memory, and the file is as it was.

Files are mutated at random: as bytes, and as what they are (JSON, YAML, headers of safetensors, footers and columns of Parquet,
members of archives), with checksums made right again, so that what stands behind a checksum is reached, too. A fault is told
with the number of its case; `python -m tests.fuzz.child SUBJECT NUMBER` repeats it alone.
"""

import multiprocessing
import os
from multiprocessing.connection import Connection

import pytest

from tests.fuzz.child import serve

CASES = {"shards": 1050, "manifests": 800, "tokenizers of datasets": 280, "cards": 80, "unfinished datasets": 120, "models": 650, "tokenizers": 320,
         "training states": 280, "corpora": 400, "configs": 650, "foreign checkpoints": 280, "evaluations": 200}
FEW = 6  # of each in the default suite
SHOWN = 10


class Reader:
    """A process that reads mutated files; another takes its place when it dies."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None

    def case(self, name: str, number: int) -> list[str]:
        """What is wrong with how a case ended, be it with the process."""
        if self.process is None:
            self.connection, theirs = self.context.Pipe()
            self.process = self.context.Process(target=serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        assert self.connection is not None
        try:
            self.connection.send((name, number))
            found: list[str] = self.connection.recv()
        except (EOFError, OSError):
            code = self.close()
            return [f"the process that read it ended with {code}: a crash, or more than its time"]
        return found

    def close(self) -> int | None:
        """End the process; returns its exit code."""
        if self.process is None or self.connection is None:
            return None
        self.connection.close()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code


@pytest.fixture(scope="module")
def reader():
    there = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    running = Reader()
    yield running
    running.close()
    if there is None:
        del os.environ["OMP_NUM_THREADS"]


def check(reader: Reader, name: str, numbers: range) -> None:
    faults = {number: found for number in numbers if (found := reader.case(name, number))}
    lines = [f"python -m tests.fuzz.child '{name}' {number}: {each}" for number, found in faults.items() for each in found]
    assert not faults, f"{len(faults)} of {len(numbers)} cases of {name}:\n" + "\n".join(lines[:SHOWN])


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("name", CASES)
def test_mutated_files_end_in_success_or_in_one_clear_line(name, reader):
    check(reader, name, range(FEW, CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_a_few_mutated_files_do(name, reader):
    check(reader, name, range(FEW))


def test_the_cases_are_thousands():
    assert sum(CASES.values()) >= 5000
