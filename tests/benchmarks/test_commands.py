"""Benchmarks run: each of these in its smallest setting, so that none is found broken on the day when its figures are wanted.

Those whose smallest setting takes minutes are left out (`joint.py`, `levels.py`, `million.py`, `plan.py`, `shaping.py`);
`claims.py` and `corpus.py` have tests of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SMALLEST = {
    "compasses": ["--quick", "--texts", "4", "--grid", "8 spaced", "--work", "work"],
    "distill": ["--quick", "--rounds", "1"],
    "logprob": ["--quick", "--rows", "64", "--vocab", "512", "--depth", "32", "--sides", "plain"],
    "rollout": ["--quick", "--only", "blind", "--threads", "1"],
    "sample_rows": ["--quick", "--rows", "16"],
    "scaling": ["simulated", "--workers", "2", "--shards", "12", "--seconds", "0.05"],
}


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs_and_writes_its_figures(name, tmp_path):
    command = [sys.executable, HERE / f"{name}.py", *SMALLEST[name], "--json", tmp_path / "figures.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "figures.json").stat().st_size > 100
