"""A process that a library would keep at its end leaves at once, with its own exit code and all that was said."""

import subprocess
import sys

import pytest

KEPT = """
import atexit, sys, threading
from tsdfm.jobs.shell.leaving import leave_at_once, left
atexit.register(threading.Event().wait)
leave_at_once("a library")
try:
    print("said", end="")
    {end}
finally:
    left(sys.exc_info()[1])
"""


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit()", 0), ("sys.exit(2)", 2), ("sys.exit('a line')", 1), ("1 / 0", 1)])
def test_it_leaves_as_it_would_have_ended(end, code):
    done = subprocess.run([sys.executable, "-c", KEPT.format(end=end)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "said")
    plain = subprocess.run([sys.executable, "-c", f"import sys\n{end}"], capture_output=True, text=True, check=False)
    assert plain.returncode == code
    assert done.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


def test_whoever_is_not_kept_goes_on():
    code = "from tsdfm.jobs.shell.leaving import left; left(None); print('on')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "on\n"
