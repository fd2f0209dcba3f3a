"""The Triton kernels in Triton's interpreter, on a CPU: the tests of the kernels once more, on that backend.

The interpreter is chosen when triton is imported, hence a process of its own. It is slow, so the default tests are a choice.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(3600)  # a busy machine takes its time; the processor, half a minute
pytest.importorskip("triton")

HERE = Path(__file__).parent
DAILY = (
    "test_against_the_oracle and (5-129-7 or 1-2-1) and (0-0.3 or None-1.0) or minus_infinity or borders_are_exact or extreme or no_rows "
    "or ties_go_to or narrow or strides or far_below or test_every_output_is_written or test_draw_k or test_draws_of_one_row or hold_no_row"
)

SCORES = "not (buckets_make_up or weighted_sum or targets_are or only_the_gradients)"


def run(file, *options):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=3600", HERE / file, *options], capture_output=True, text=True,
        check=False, cwd=HERE.parents[1], env={**os.environ, "TRITON_INTERPRET": "1", "TSDFM_KERNELS": "triton"})


def test_sample_rows():
    done = run("test_sample_rows.py", "-k", DAILY)
    assert done.returncode == 0, done.stdout


def test_philox():
    done = run("test_philox.py", "-k", "known or broadcast or 53_bits or float64")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", ["test_linear_buckets.py", "test_linear_logprob.py"])
def test_scores(file):
    done = run(file, "-k", SCORES)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_sample_rows.py", "test_philox.py", "test_linear_buckets.py", "test_linear_logprob.py"])
def test_everything(file):
    done = run(file)
    assert done.returncode == 0, done.stdout
