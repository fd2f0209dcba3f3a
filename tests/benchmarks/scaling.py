"""How `generate` scales: with workers on this machine's cores, and with many workers whose work is only waited for.

    python tests/benchmarks/scaling.py workers     # 1 and 2 workers of one thread each, in turn, on two cores
    python tests/benchmarks/scaling.py simulated   # 64 workers that sleep: what the driver costs, not the networks

Start-up is left out: rates are taken over the middle of a run, from 20 % to 90 % of its shards, which stands for a long run. In
`simulated` Ray, the driver, its census of the cluster, signs of life, shards and receipts are the real ones; only the time that a
shard takes is slept, log-normal, and every shard holds the same rows. The ideal is that no worker ever waits for its next shard.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from measure import MIB, peak_bytes

from tsdfm.jobs.crew.census import census
from tsdfm.jobs.crew.collect import Told, collect
from tsdfm.jobs.crew.tasks import Call, Need, Tasks
from tsdfm.jobs.generate.run import generate
from tsdfm.jobs.generate.worker import Order, make
from tsdfm.jobs.shell.cluster import cluster
from tsdfm.pipeline.dataset.files.receipts import leave_receipt
from tsdfm.pipeline.dataset.manifest import Finished
from tsdfm.pipeline.flow.generate import Work, generate_dataset
from tsdfm.pipeline.storage.in_order import in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.progress import Progress

FROM, TO = 0.2, 0.9  # the part of a run that is measured, in shares of its shards


def main() -> None:
    """Measure, print the figures, and write them as JSON."""
    parser = argparse.ArgumentParser(description="How generate scales.")
    parser.add_argument("what", choices=["workers", "simulated"])
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (workers)")
    parser.add_argument("--workers", type=int, default=64, help="workers that sleep (simulated)")
    parser.add_argument("--shards", type=int, default=None, help="shards of a run; default 40 (workers), 10000 (simulated)")
    parser.add_argument("--seconds", type=float, default=2.0, help="mean time of a simulated shard")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = workers(Path(folder), asked.rounds, asked.shards or 40) if asked.what == "workers" else simulated(
            Path(folder), asked.workers, asked.shards or 10_000, asked.seconds)
    found |= {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


# -- workers on cores --------------------------------------------------------------------------------------

def workers(folder: Path, rounds: int, shards: int) -> dict[str, object]:
    """Shards a second with 1 and with 2 workers, in turn, and their ratio in every round."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with cluster("local", 2):
        for number in range(rounds):
            for crew, found in rates.items():
                out = folder / f"{number}-{crew}"
                generate(GenerateConfig(
                    out=str(out), trajectories=4 * shards * crew, shard_size=4, workers=crew,
                    rollout=RolloutConfig(steps=32, batch_size=4, threads=1), shaping=ShapingConfig(candidates=8)))
                found.append(middle_rate([path.stat().st_mtime for path in out.glob("data/*.parquet")]))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {"shards_per_second": {str(crew): found for crew, found in rates.items()}, "ratios": ratios, "median": statistics.median(ratios)}


def middle_rate(ends: Sequence[float]) -> float:
    """Shards a second over the middle of a run, from the times at which its shards were finished."""
    times = sorted(ends)
    first, last = int(FROM * len(times)), int(TO * len(times)) - 1
    return (last - first) / (times[last] - times[first])


# -- workers that sleep ------------------------------------------------------------------------------------

def simulated(folder: Path, crew: int, shards: int, seconds: float) -> dict[str, object]:
    """The share of the ideal rate that so many sleeping workers reach, and the driver's peak memory."""
    config = GenerateConfig(
        out=str(folder / "out"), trajectories=shards, shard_size=1, shards_per_file=1, workers=crew, arm="blind", compass="none",
        rollout=RolloutConfig(steps=4, batch_size=1))
    draws = random.Random(0)
    times = [draws.lognormvariate(0, 0.5) * seconds / 1.1331 for _ in range(shards)]  # exp(0.5**2 / 2), the mean
    with ExitStack() as held:
        held.enter_context(cluster("local", crew))
        began = time.monotonic()
        sleeping = Sleeping(crew, times)
        report = generate_dataset(config, maker=sleeping)
        wall = time.monotonic() - began
    ends = sorted(sleeping.ends)
    first, last = int(FROM * shards), int(TO * shards) - 1
    slept = sum(times[index] for _, index in ends[first + 1: last + 1])
    window = ends[last][0] - ends[first][0]
    return {"workers": crew, "shards": report.shards, "mean_seconds": sum(times) / shards, "wall_seconds": wall,
            "efficiency": slept / crew / window,
            "driver_cpu_seconds_a_shard": (sleeping.cpu[1] - sleeping.cpu[0]) / shards, "driver_peak_mib": peak_bytes() / MIB}


class Sleeping:
    """A maker of shards whose workers sleep; notes when each was heard of."""

    def __init__(self, workers: int, times: Sequence[float]) -> None:
        self._workers, self._times = workers, times
        self.ends: list[tuple[float, int]] = []
        self.cpu = 0.0, 0.0

    def device(self) -> torch.device:
        return torch.device("cpu")

    mapper = staticmethod(in_order)

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        made, first = dict[int, Finished](), dict[int, Finished]()

        def take(index: int, done: Finished) -> None:
            made[index] = done
            self.ends.append((time.monotonic(), index))

        with census("finished shards are kept") as asking:
            order = Order(work.config, work.identity, work.store.address)  # by a worker, for the driver of a run makes none
            real = Tasks(Call("ShardWorker.make", make, lambda index: (order, work.items[index], None)), Need("CPU", 1), 1, asking)
            collect(real, Told("making one", "shard", str), missing[:1], first.__setitem__)
            template = first[missing[0]]
            data = work.store.read(template.record.path) or b""
            began = time.process_time()
            call = Call("ShardWorker.make", asleep, lambda index: (
                work.store.address, data, named(template, work.items[index].path), self._times[index], work.identity),
                alike=True)
            tasks = Tasks(call, Need("CPU", 1), self._workers, asking)
            told = Told("making shards", "shard", lambda index: work.items[index].path)
            collect(tasks, told, missing, take, work.check)
        self.cpu = began, time.process_time()
        return made


def named(done: Finished, path: str) -> Finished:
    """A shard under another name."""
    return replace(done, record=done.record.model_copy(update={"path": path}))


def asleep(address: str, data: bytes, done: Finished, seconds: float, identity: Identity) -> Finished:
    """What a worker runs: the time of a shard, its file, and its receipt."""
    store = open_store(address)
    time.sleep(seconds)
    store.write(done.record.path, data)
    leave_receipt(store, done, identity)
    return done


if __name__ == "__main__":
    main()
