"""How much memory and time a large corpus takes: `pretrain` for two updates on a synthetic one, and on a small one beside it.

    .venv/bin/python tests/benchmarks/corpus.py --gigabytes 4 --json tests/benchmarks/results/corpus.json

The corpus is a .jsonl of random words, about 1,000 characters a record. Text and tokens lie in a temporary folder below --folder
and are deleted afterwards; they take about 1.2 times the corpus beside the corpus itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

WORDS, WORDS_PER_RECORD, SEED = 20_000, 160, 0
SMALL_BYTES = 10_000_000
CHILD = """
import resource, sys
from tsdfm.jobs.cli import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


def write_synthetic(path: Path, size: int) -> None:
    """Write records of random words, frequent ones more often, until the file has about `size` bytes."""
    rng = np.random.default_rng(SEED)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(WORDS)]
    share = 1 / np.arange(1, WORDS + 1)
    steps = np.cumsum(share / share.sum())
    with path.open("w") as file:
        while file.tell() < size:
            picks = np.minimum(np.searchsorted(steps, rng.random((1000, WORDS_PER_RECORD))), WORDS - 1)
            file.writelines(json.dumps({"text": " ".join(words[pick] for pick in row)}) + "\n" for row in picks.tolist())


def measured(corpus: Path, folder: Path) -> dict[str, float]:
    """Run `pretrain` in a process of its own. Returns seconds, and the peak of its resident memory in MB."""
    command = ["pretrain", "--corpus", str(corpus), "--out", str(folder / f"{corpus.stem}-teacher"), "--updates", "2",
               "--threads", "1", "--set", "optim.batch_size=8", "--set", "shape.hidden_size=96", "--set", "shape.n_blocks=1"]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CHILD, *command], env={**os.environ, "TSDFM_CORPORA": str(folder / "corpora")},
                          check=True, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - started
    size = corpus.stat().st_size
    return {"bytes": size, "seconds": round(seconds, 1), "mb_per_second": round(size / 1e6 / seconds, 2),
            "peak_rss_mb": round(int(done.stderr.rsplit("peak", 1)[1]) / 1e6)}


def compared(size: int, folder: Path) -> dict[str, dict[str, float]]:
    """`measured` of a corpus of `size` bytes, read for the first and for the second time, and of a small one."""
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    write_synthetic(small, min(SMALL_BYTES, size))
    write_synthetic(large, size)
    found = {"small": measured(small, folder), "large": measured(large, folder)}
    again = folder / "again"
    again.mkdir()
    (again / "corpora").symlink_to(folder / "corpora")
    return {**found, "large, kept": measured(large, again)}


@click.command()
@click.option("--gigabytes", type=float, default=4.0, show_default=True, help="Size of the synthetic corpus.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path(tempfile.gettempdir()),
              help="Where it and its tokens lie meanwhile.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File for the figures.")
def main(gigabytes: float, folder: Path, target: Path | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found = compared(int(gigabytes * 1e9), Path(scratch))
    for name, row in found.items():
        click.echo(f"{name:12} {row['bytes'] / 1e6:8,.0f} MB  {row['seconds']:7.1f} s  {row['mb_per_second']:7.2f} MB/s  "
                   f"peak {row['peak_rss_mb']:6,.0f} MB")
    if target is not None:
        target.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
