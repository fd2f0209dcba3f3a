"""Progress on a terminal: what a bar shows is what was done of what there is."""

import os
import pty
import re
import subprocess
import sys

import pytest

from tests.support import make_dataset

COMMAND = [sys.executable, "-m", "tsdfm.jobs"]


def on_a_terminal(*arguments: object) -> str:
    """What a command writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=theirs, stderr=theirs, stdin=theirs,
                               env=os.environ | {"COLUMNS": "120", "TERM": "xterm"})
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0, seen.decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


@pytest.mark.parametrize("arguments", [("verify",), ("inspect", "--counterfactual"), ("inspect",)])
def test_bars_count_to_their_total(tmp_path, tiny_models, arguments):
    make_dataset(tmp_path / "out", tiny_models)
    command, *flags = arguments
    shown = on_a_terminal(command, tmp_path / "out", *flags)
    counts = {(int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+) ", shown)}
    assert (3, 3) in counts
    assert all(done <= total for done, total in counts), counts
