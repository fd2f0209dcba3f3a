"""Every kernel compiles for sm_80 and sm_90 with no GPU: no spills, shared memory that fits, tensor cores where a product is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
REGISTERS = 255

pytestmark = pytest.mark.timeout(3600)
pytest.importorskip("triton")


def check(tmp_path, *wanted):
    """Compile in a process of its own, with an empty cache: what is measured is what was just compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("aot.py"), "--json", *wanted], capture_output=True, text=True, check=False,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        assert line["STACK"] == line["LOCAL"] == line["STL"] == line["LDL"] == 0, line
        assert line["REG"] <= REGISTERS, line
        assert line["shared"] <= SHARED[line["sm"]], line
        if not line["kernel"].startswith("philox"):
            assert line["HGMMA"] + line["HMMA"] > 0, line
        if line["sm"] == 90 and not line["kernel"].startswith("philox") and " 16x" not in line["kernel"]:
            assert line["HGMMA"] > 0, line  # tiles of 64 rows and more use Hopper's own products
    return lines


def test_the_kernels_of_everyday_use(tmp_path):
    lines = check(tmp_path, "philox uniform", "block_stats bf16 128", "gather_blocks bf16 16x128", "buckets bf16 128x64x16x3 k=1 ",
                  "gradient bf16 128")
    assert {line["sm"] for line in lines} == {80, 90}
    assert len(lines) == 2 * (1 + 2 + 1 + 2 + 2)


@pytest.mark.slow
def test_every_entry_of_the_table(tmp_path):
    """fp16 has the tiles of bf16, and of it one kernel is enough."""
    lines = check(tmp_path, "philox", "block_stats fp16",
                  *(f"{kernel} {dtype}" for kernel in ("block_stats", "gather_blocks", "buckets", "gradient") for dtype in ("bf16", "fp32")))
    assert len(lines) == len({(line["kernel"], line["sm"]) for line in lines}) == 128
