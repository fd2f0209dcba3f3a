"""Every kernel compiles for sm_80 and sm_90 with no GPU, each as its record says: no spills, shared memory that fits, tensor cores where a product is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
REGISTERS = 255

pytestmark = pytest.mark.timeout(3600)
triton = pytest.importorskip("triton")
RECORDED = json.loads(Path(__file__).with_name("compiled.json").read_text())


def check(lines):
    for line in lines:
        assert line["STACK"] == line["LOCAL"] == line["STL"] == line["LDL"] == 0, line
        assert line["REG"] <= REGISTERS, line
        assert line["shared"] <= SHARED[line["sm"]], line
        if not line["kernel"].startswith("philox"):
            assert line["HGMMA"] + line["HMMA"] > 0, line
        if line["sm"] == 90 and not line["kernel"].startswith("philox") and " 16x" not in line["kernel"]:
            assert line["HGMMA"] > 0, line  # tiles of 64 rows and more use Hopper's own products


def aot(tmp_path, *arguments):
    """What aot.py prints, in a process of its own, with an empty cache: what is measured is what was just compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, Path(__file__).with_name("aot.py"), *arguments], capture_output=True, text=True, check=False,
                          env={**environment, "TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_entry_of_the_table(tmp_path):
    """All compile to what they should: by their record, which is of these very sources."""
    assert [RECORDED["sources"]] == aot(tmp_path, "--sources"), "the kernels have changed: python tests/kernels/aot.py --record"
    check(RECORDED["kernels"])
    assert len(RECORDED["kernels"]) == len({(line["kernel"], line["sm"]) for line in RECORDED["kernels"]}) == 182


@pytest.mark.slow
def test_the_kernels_of_everyday_use(tmp_path):
    """They are compiled now, and are what the record says."""
    printed = aot(tmp_path, "--json", "philox uniform", "block_stats bf16 128", "gather_blocks bf16 16x128", "buckets bf16 128x64x16x3 k=1 ",
                  "gradient bf16 128")
    lines = [json.loads(line) for line in printed]
    assert {line["sm"] for line in lines} == {80, 90}
    assert len(lines) == 2 * (1 + 2 + 1 + 2 + 2)
    check(lines)
    if triton.__version__ == RECORDED["triton"]:
        assert [line for line in lines if line not in RECORDED["kernels"]] == []
