"""What many shards cost: seconds and memory of every operation on 100 and on 10,000 shards, and what a million trajectories would.

    python tests/benchmarks/million.py --json FILE

The shards are files of one tiny trajectory each, so that what is counted is the work per shard. Every operation runs in a
process of its own. A million trajectories of L = 1,024 are estimated of a few that a network of random weights wrote: their bytes,
and the seconds per byte of each operation. Random texts compress badly, so the bytes are more than those of real ones.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import torch
from measure import MIB, peak_bytes, reset_peak

from tests.support import denoiser_config, make_models, scatter_weights, vocabulary
from tsdfm.pipeline.dataset.files.parts import write_unit
from tsdfm.pipeline.dataset.manifest import read_manifest, read_shard
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import save
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.generate import GenerateConfig

CPU = torch.device("cpu")
OPERATIONS = ("make", "resume unfinished", "resume finished", "verify", "inspect", "open for distill")
LENGTH, SAMPLED, MILLION = 1024, 8, 1_000_000


class Copies(InThisProcess):
    """Writes copies of one trajectory in place of rolling any out, and is killed before the dataset is committed."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__(CPU)
        self.table = table

    def make(self, work, missing, progress):
        for index in missing:
            item, place = work.items[index], self.table.schema.get_field_index("trajectory_id")
            ids = pa.array([item.start] * self.table.num_rows, pa.int64())
            write_unit(work.store, work.identity, item, self.table.set_column(place, self.table.schema.field(place), ids))
        raise KeyboardInterrupt


def config_of(folder: Path, out: Path, shards: int) -> GenerateConfig:
    return GenerateConfig.model_validate({
        "out": str(out), "teacher": str(folder / "models" / "mask"), "compass": str(folder / "models" / "ar"),
        "trajectories": shards, "shard_size": 1, "shards_per_file": 1,
        "rollout": {"steps": 8, "batch_size": 4}, "shaping": {"candidates": 2}})


def operate(operation: str, folder: Path, shards: int) -> None:
    """One operation on the dataset of so many shards."""
    out = folder / str(shards)
    config = config_of(folder, out, shards)
    if operation == "make":
        store = open_store(str(folder / "one"))
        try:
            generate_dataset(config, maker=Copies(read_shard(store, read_manifest(store).shards[0]).replace_schema_metadata()))
        except KeyboardInterrupt:
            return
    elif operation.startswith("resume"):
        assert generate_dataset(config, maker=InThisProcess(CPU)).kept == shards
    elif operation == "verify":
        assert verify(str(out))[1] == []
    elif operation == "inspect":
        summarise(open_store(str(out)))
    else:
        Reader.open(DataConfig(paths=[str(out)]), ReaderSettings())


def measured(operation: str, folder: Path, shards: int) -> dict[str, Any]:
    """Seconds of the operation alone, and the peak memory of its process, MiB."""
    done = subprocess.run([sys.executable, __file__, "--one", operation, "--folder", str(folder), "--shards", str(shards)],
                          check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def sampled(folder: Path) -> dict[str, float]:
    """Of real rows of L = 1,024 and N = 64, K = 8: bytes a trajectory, and seconds per trajectory of what reads them."""
    words = vocabulary()
    network = Denoiser(denoiser_config("mask", words, LENGTH))
    scatter_weights(network, 0)
    save(folder / "long", network, words, None)
    out = folder / "sampled"
    generate_dataset(GenerateConfig.model_validate({
        "out": str(out), "teacher": str(folder / "long"), "compass": "denoiser", "trajectories": SAMPLED, "shard_size": SAMPLED,
        "shards_per_file": 1, "rollout": {"steps": 64, "batch_size": 4}, "shaping": {"candidates": 8}}), maker=InThisProcess(CPU))
    found = {"bytes": read_manifest(open_store(str(out))).totals.bytes / SAMPLED}
    for name, act in {"verify": lambda: verify(str(out)), "inspect": lambda: summarise(open_store(str(out)))}.items():
        act()
        started = time.monotonic()
        for _ in range(5):
            act()
        found[name] = (time.monotonic() - started) / 5 / SAMPLED
    return found


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where the figures go.")
@click.option("--many", default=10_000, show_default=True, help="Shards of the larger dataset.")
@click.option("--one", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
@click.option("--shards", hidden=True, type=int)
def main(path: Path | None, many: int, one: str | None, folder: Path | None, shards: int | None) -> None:
    """Measure, print a table, and write it."""
    if one is not None and folder is not None and shards is not None:
        reset_peak()
        started = time.monotonic()
        operate(one, folder, shards)
        print(json.dumps({"seconds": time.monotonic() - started, "mebibytes": peak_bytes() / MIB}))
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_models(place / "models")
        generate_dataset(config_of(place, place / "one", 1), maker=InThisProcess(CPU))
        table: dict[str, Any] = {}
        for operation in OPERATIONS:
            few, more = (measured(operation, place, number) for number in (100, many))
            table[operation] = {"100": few, str(many): more,
                                "ratio per shard": more["seconds"] / many / (few["seconds"] / 100)}
            print(f"{operation:18} 100 shards {few['seconds']:7.2f} s {few['mebibytes']:6.0f} MiB   {many:,} shards "
                  f"{more['seconds']:7.2f} s {more['mebibytes']:6.0f} MiB   per shard x {table[operation]['ratio per shard']:.2f}")
        one_of = sampled(place)
    table["a million of L = 1024"] = {"gigabytes": one_of["bytes"] * MILLION / 1e9,
                                      **{f"{name}, hours of one core": one_of[name] * MILLION / 3600 for name in ("verify", "inspect")}}
    print(json.dumps(table["a million of L = 1024"], indent=2))
    if path is not None:
        path.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
