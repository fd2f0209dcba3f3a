"""How a command that is told to stop ends: one line, exit code 130, whatever the signal; and what is quoted steers no terminal."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.support import write_corpus
from tsdfm.jobs.shell.console import say

COMMAND = [sys.executable, "-c", "from tsdfm.jobs.cli import main; main()"]
SIZES = ["--length", "8", "--set", "vocab_size=300", "--set", "cond_dim=8",
         "--set", "shape={hidden_size: 16, n_blocks: 1, n_heads: 1}"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.release) for each in (signal.SIGHUP, signal.SIGINT))],
                         ids=["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_training_that_is_told_to_stop_saves_and_says_how_to_go_on(tmp_path, number):
    """Slurm and Kubernetes send SIGTERM, a closed terminal SIGHUP."""
    corpus, out = write_corpus(tmp_path / "text.txt", 2000), tmp_path / "teacher"
    arguments = ["pretrain", "--out", out, "--corpus", corpus, "--set", "optim.checkpoint_every=10", *SIZES, "--updates", "1000000"]
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "teacher.training" / "training_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "resume with: tsdfm-pipeline pretrain" in said.splitlines()[-1]


# Before the command starts: whoever imports the named module is interrupted there, and may swallow what is raised.
INTERRUPTING = """
import os, signal, sys, time
class Finder:
    def find_spec(name, path=None, target=None):
        if name == marked:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except BaseException:
                pass
marked = sys.argv.pop()
sys.meta_path.insert(0, Finder)
from tsdfm.jobs.start import main
sys.argv = ["tsdfm-pipeline", "sample", "--model", "nowhere", "-n", "1"]
main()
"""


@pytest.mark.parametrize("module", ["tsdfm.jobs.cli", "click", "pydantic", "torch"])
def test_an_interrupt_while_a_library_is_imported_ends_the_command_in_one_line(module):
    process = subprocess.run([sys.executable, "-c", INTERRUPTING, module], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout) == (130, "")
    assert process.stderr == "Error: interrupted; finished work is kept, the same command goes on with it\n"


@pytest.mark.slow
@pytest.mark.release
def test_at_whatever_moment_of_its_start_a_command_is_interrupted_it_ends_in_one_line():
    """From the moment on that the command has the say: what Python does before that, in some hundredths of a second, is its own."""
    for hundredths in (15, 25, 35, 50, 75, 100, 150, 200):
        process = subprocess.Popen([sys.executable, "-m", "tsdfm.jobs", "sample", "-n", "400", "--steps", "64"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(hundredths / 100)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
        assert process.returncode == 130, (hundredths, said)
        assert (out, len(said.splitlines())) == ("", 1), (hundredths, said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_whatever_a_command_does_a_signal_ends_it_in_one_line(number):
    waiting = "import time, tsdfm.jobs.cli as cli; print('here', flush=True); cli._run = lambda: time.sleep(60); cli.main()"
    process = subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "Error: interrupted; finished work is kept, the same command goes on with it\n"
    assert process.returncode == 130


def test_a_quoted_name_does_not_steer_the_terminal(capsys):
    say("no such file: \x1b[2Jhidden\x07\r\u202e")
    said = capsys.readouterr().err
    assert not any(mark in said for mark in "\x1b\x07\r\u202e")
    assert "hidden" in said


SWALLOWING = """
import os, signal, time, weakref
from tsdfm.jobs.shell.signals import STOPPING, interrupt
for number in STOPPING:
    signal.signal(number, interrupt)
class Thing: pass
def callback(_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
thing = Thing()
there = weakref.ref(thing, callback)
try:
    del thing                       # Python swallows what a callback raises
    time.sleep(20)
except KeyboardInterrupt:
    time.sleep(2.5)                 # a clean-up takes a while, and is not interrupted by the signal's repetition
    print("heard")
"""


def test_an_interrupt_is_neither_lost_nor_repeated():
    done = subprocess.run([sys.executable, "-c", SWALLOWING], capture_output=True, text=True, timeout=60)
    assert done.stdout == "heard\n", done.stderr


FORKING = """
import logging, os, signal, sys, threading, time
from tsdfm.jobs.shell.signals import STOPPING, interrupt
for number in STOPPING:
    signal.signal(number, interrupt)
def callback():
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(1000))
if sys.argv[1] == "callback":
    os.register_at_fork(after_in_parent=callback)
else:  # while logging lets go its lock
    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_name in ("_releaseLock", "_afterFork"):
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGTERM)
    sys.setprofile(profile)
started = time.monotonic()
try:
    if os.fork() == 0:
        os._exit(0)
    time.sleep(20)
except KeyboardInterrupt:
    thread = threading.Thread(target=logging.getLogger, args=("another",), daemon=True)
    thread.start()
    thread.join(5)
    print("heard", time.monotonic() - started < 10, thread.is_alive())
"""


@pytest.mark.parametrize("where", ["callback", "lock"])
def test_an_interrupt_in_the_middle_of_a_fork_is_heard_soon_and_nothing_else_is_said(where):
    """As Ray forks when it starts: what runs then can't be interrupted, and a lock that it took must be let go."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING, where], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("heard True False\n", "")


# The first line of a command is in the making, and what rich needs for that in the midst of its import.
SAYING = """
import importlib.machinery, os, signal, sys
from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.interrupts import interruptible
assert "rich._emoji_codes" not in sys.modules
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "rich._emoji_codes":
            return importlib.machinery.ModuleSpec(name, Finder)
    def create_module(spec):
        return None
    def exec_module(module):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(100_000))
        module.EMOJI = {}
sys.meta_path.insert(0, Finder)
with interruptible("saving") as interrupted:
    say("a line")
print(bool(interrupted))
"""


def test_how_to_go_on_is_said_whatever_the_command_does_at_that_moment():
    done = subprocess.run([sys.executable, "-c", SAYING], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
    line, how = sorted(done.stderr.splitlines())
    assert line == "a line"
    assert how.startswith("saving; interrupt again to stop at once; resume with: tsdfm-pipeline")


def test_what_a_library_makes_of_an_interrupt_is_an_interrupt(cli, monkeypatch):
    """pydantic, say, raises an error of its own where an interrupt came in a function that it calls."""
    def swallowing() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("error calling a function") from None

    monkeypatch.setattr("tsdfm.jobs.recipe.recipes", swallowing)
    outcome = cli("recipe")
    assert outcome.code == 130
    assert "interrupted" in outcome.stderr
    assert "defect" not in outcome.stderr


def test_an_interrupt_before_the_command_has_begun_is_one_line(cli, monkeypatch):
    """As logging is set up."""
    @contextmanager
    def logged():
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    monkeypatch.setattr("tsdfm.jobs.cli.logged", logged)
    outcome = cli("recipe")
    assert (outcome.code, outcome.stdout) == (130, "")
    assert outcome.stderr == "Error: interrupted; finished work is kept, the same command goes on with it\n"


def test_an_interrupt_on_the_way_to_the_command_is_one_line():
    code = ("import os, signal, sys, tsdfm.jobs.cli as cli, tsdfm.jobs.start as start\n"
            "cli.main = lambda: os.kill(os.getpid(), signal.SIGINT)\nstart.main()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Error: interrupted; finished work is kept, the same command goes on with it\n"


def test_an_interrupt_as_logging_is_put_back_comes_too_late(cli, monkeypatch):
    """The work is done: it ends as it would have, without a traceback."""
    @contextmanager
    def logged():
        yield
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)

    monkeypatch.setattr("tsdfm.jobs.cli.logged", logged)
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where another test has started it in this process
    outcome = cli("recipe")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert signal.getsignal(signal.SIGTERM) == before
