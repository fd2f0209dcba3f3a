"""The process in which mutated files are read: within a limit of memory, each case within a limit of time.

A case is (subject, number): the same two give the same mutation, so that one is repeated alone with

    python -m tests.fuzz.child SUBJECT NUMBER
"""

import faulthandler
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.outcome import faults
from tests.fuzz.subjects import SUBJECTS, unread
from tests.support import TinyModels, make_models, tree
from tsdfm.pipeline.storage.atomic import sha256_file

SECONDS, DEADLINE = 4.0, 60.0  # of the processor that a case may take, and of the clock after which the process ends itself
MEMORY = 2 << 30  # bytes on top of what the process has when a subject is prepared, and all for it imported


class Bench:
    """Makes cases in a folder of its own, and reads them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: TinyModels = make_models(root / "models")
        self.prepared: dict[str, Path] = {}
        os.environ["FUZZ_ASIDE"] = str(root / "aside")
        os.environ["HF_HOME"] = str(root / "hf")

    def case(self, name: str, number: int) -> list[str]:
        """What is wrong with how one case ended; [] if nothing is."""
        subject, rng = SUBJECTS[name], random.Random(f"{name} {number}")
        folder = self.root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._sound(name), folder)
        subject.spoil(folder, rng)
        before = {path: sha256_file(path) for path in unread(subject, folder)}
        state = tree(folder / "teacher.training") if name == "training states" else {}
        started = time.process_time()
        try:
            run = subject.runs(folder, rng, self.models)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return [f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:300]}"]
        taken, found = time.process_time() - started, list(faults(run, folder))
        if taken > SECONDS:
            found.append(f"took {taken:.1f} s")
        if {path: sha256_file(path) for path in unread(subject, folder)} != before:
            found.append("changed what it read")
        if run.outcome.code and state and {key: value for key, value in tree(folder / "teacher.training").items() if key in state} != state:
            found.append("refused a training state, and changed it")
        return [f"{run.asked}: {each}" for each in found]

    def _sound(self, name: str) -> Path:
        if name not in self.prepared:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            self.prepared[name] = self.root / "sound" / name.replace(" ", "-")
            self.prepared[name].mkdir(parents=True)
            SUBJECTS[name].prepare(self.prepared[name], self.models)
            limit_memory()
        return self.prepared[name]


def limit_memory() -> None:
    """From here on the process may take MEMORY more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def serve(connection: Connection) -> None:
    """Answer requests (subject, number) with lists of faults, until the other end closes."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as root, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        bench = Bench(Path(root))
        for name, number in _requests(connection):
            faulthandler.dump_traceback_later(DEADLINE, exit=True)
            connection.send(bench.case(name, number))
            faulthandler.cancel_dump_traceback_later()


def _requests(connection: Connection) -> Iterator[tuple[str, int]]:
    while True:
        try:
            yield connection.recv()
        except EOFError:
            return


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fuzz") as alone:
        os.environ["TSDFM_TRACEBACK"] = "1"
        print(*Bench(Path(alone)).case(sys.argv[1], int(sys.argv[2])), sep="\n")
