"""Is a plan true? Each command is planned with `--plan --json`, and then run; planned and measured seconds and bytes, and ratios.

    python tests/benchmarks/plan.py --json FILE    some ten minutes on two cores; results/plan.json holds what it found

Both run as a user runs them, one process each, on the embedded models. Other work on the machine moves either.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = [str(Path(sys.executable).with_name("tsdfm-pipeline"))]


def runs(folder: Path) -> dict[str, list[str]]:
    """The commands, by name; the first makes what others read."""
    data = str(folder / "data")
    return {
        "generate": ["generate", "--out", data, "--arm", "both", "--trajectories", "128"],
        "distill": ["distill", "--data", data, "--out", str(folder / "student"), "--updates", "60"],
        "evaluate": ["evaluate", "-n", "64", "--steps", "8,64"],
        "pretrain": ["pretrain", "--out", str(folder / "teacher"), "--updates", "60"],
    }


def timed(arguments: list[str]) -> tuple[float, str]:
    """Wall seconds of a command, and its standard output."""
    began = time.monotonic()
    done = subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return time.monotonic() - began, done.stdout


def size(path: Path) -> int:
    """Bytes of the shards of a dataset, or of a model's folder."""
    there = path / "data" if (path / "data").is_dir() else path
    return sum(file.stat().st_size for file in there.rglob("*") if file.is_file())


def compare(name: str, arguments: list[str]) -> dict[str, Any]:
    """A command planned and run."""
    planning, text = timed([*arguments, "--plan", "--json"])
    plan, load = json.loads(text), os.getloadavg()[0]
    seconds, _ = timed(arguments)
    found: dict[str, Any] = {
        "planned seconds": round(plan["seconds"], 1), "measured seconds": round(seconds, 1),
        "ratio": round(plan["seconds"] / seconds, 3), "seconds of planning": round(planning, 1), "load": round(load, 2)}
    planned = plan["makes"].get("bytes", plan["makes"].get("bytes of the model"))
    if planned is not None:
        measured = size(Path(arguments[arguments.index("--out") + 1]))
        found |= {"planned bytes": planned, "measured bytes": measured, "ratio of bytes": round(planned / measured, 3)}
    print(f"{name}: {found}", flush=True)
    return found


def main() -> None:
    """Compare every command, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: compare(name, arguments) for name, arguments in runs(Path(scratch)).items()}
    if asked.json:
        asked.json.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
