"""The Triton kernels in Triton's interpreter, on a CPU: the tests marked `triton`, once more, on that backend.

The interpreter is chosen when triton is imported, hence a process of its own. It is slow: what is marked `triton_slow`, too, waits
for the slow tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(3600)  # a busy machine takes its time; the processor, half a minute
pytest.importorskip("triton")

HERE = Path(__file__).parent


def run(marked):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=3600", HERE, "-m", marked], capture_output=True, text=True,
        check=False, cwd=HERE.parents[1], env={**os.environ, "TRITON_INTERPRET": "1", "TSDFM_KERNELS": "triton"})


def test_daily():
    done = run("triton and not triton_slow")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.release
def test_the_rest():
    done = run("triton_slow")
    assert done.returncode == 0, done.stdout
