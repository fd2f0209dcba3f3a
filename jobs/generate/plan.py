"""`tsdfm-pipeline generate --plan`: what a dataset will hold and cost; nothing is made."""

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsdfm.jobs.crew.mapper import spread
from tsdfm.jobs.generate.measure import measured, places
from tsdfm.jobs.generate.run import anchored_models
from tsdfm.jobs.plan.plan import Forecast, Measurement, check_writable, plan_of, started_seconds
from tsdfm.jobs.plan.rates import as_json
from tsdfm.jobs.plan.rollouts import RolloutWork, makespan
from tsdfm.jobs.shell.cluster import cluster, gpus_at
from tsdfm.jobs.shell.console import Stages
from tsdfm.pipeline.flow.compass import FittedCompass
from tsdfm.pipeline.flow.generate import Standing, standing
from tsdfm.pipeline.flow.opening import Models
from tsdfm.pipeline.storage.in_order import in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import plain_json
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.plan import Plan, PlanWish, Rates, Stage
from tsdfm.schemas.regular import read_regular

POLLS = 0.5  # seconds that a run takes to see that its last shard is made


def plan_generate(config: GenerateConfig, wish: PlanWish) -> Plan:
    """The plan of a dataset. Raises InputError where the run would; nothing is written."""
    torch.set_num_threads(config.rollout.threads)
    config = anchored_models(config)
    with ExitStack() as held:
        began = time.monotonic()
        device = _device(config, wish, held)
        connecting = time.monotonic() - began
        here = config.address == "local" or wish.rates is not None
        with Stages() as progress:
            there = standing(config, device, progress, in_order if here else spread)
        local = None if config.out is None else open_store(config.out).local
        if local is not None:
            check_writable(local)
        connected = wish.rates is None or config.address == "local"
        workers = places(config, len(there.missing)) if connected else config.workers
        return plan_of(GenerateJob(config, there, workers, started_seconds(), connecting), wish)


def _device(config: GenerateConfig, wish: PlanWish, held: ExitStack) -> torch.device:
    """What shards will be made on. With rates at hand no cluster is asked."""
    if config.address == "local":
        return torch.device("cuda" if gpus_at("local") else "cpu")
    if wish.rates is not None:
        with suppress(Exception):  # what is wrong with the file is told when it is read
            return torch.device(plain_json(read_regular(Path(wish.rates)), wish.rates)["measured_for"]["device"])
        return torch.device("cpu")
    held.enter_context(cluster(config.address, None))
    return torch.device("cuda" if gpus_at(config.address) else "cpu")


@dataclass(frozen=True)
class GenerateJob:
    """A dataset to be made: see `jobs.plan.plan.Job`. `workers`: of the run; None: as many as were measured."""

    config: GenerateConfig
    standing: Standing
    workers: int | None
    started: float  # seconds until all was checked
    connecting: float
    command: str = "generate"

    @property
    def out(self) -> str | None:
        """Where the dataset will be."""
        return self.config.out

    @property
    def address(self) -> str:
        """Where it is made."""
        return self.config.address

    def measured_for(self) -> Mapping[str, Any]:
        """Shapes of the models, and every setting that moves the time, the device among them."""
        return measured_for(self.standing.identity, self.standing.models)

    def measure(self) -> Measurement:
        """See `measure.measured`. Where nothing is left to make, a shard is measured all the same: rates may be for others."""
        found = measured(self.config, self.standing.identity, self.standing.models.given, self.workers or 1)
        return Measurement(found.machine, found.workers, {
            **found.numbers, "start": self.started - self.connecting, "ray": found.numbers["ray"] + self.connecting})

    def forecast(self, rates: Rates) -> Forecast:
        """The missing shards, their work, and how long the workers take for them."""
        identity, items, missing = self.standing.identity, self.standing.items, self.standing.missing
        n, left = rates.numbers, [items[index].stop - items[index].start for index in missing]
        workers = max(1, min(self.workers or rates.workers, len(missing) or 1))
        work, trajectories, arms = RolloutWork.of(identity, sum(left), self._free), sum(left), len(identity.arms)
        stages = [Stage(what="start, models, what is there", seconds=n["start"])]
        if missing:
            stages += [Stage(what="Ray and its workers", seconds=n["ray"] + n["worker"] + n["opening"]),
                       Stage(what="making shards", seconds=makespan(left, workers, n["trajectory"]) + POLLS),
                       Stage(what="leaving", seconds=n["leaving"])]
        kept = self.standing.kept.values()
        size = sum(done.record.bytes for done in kept) + n["bytes"] * (trajectories + self._carried_trajectories)
        return Forecast(
            makes={"trajectories": identity.trajectories, "rows": identity.trajectories * arms, "shards": len(items),
                   "bytes": round(size + n["shard_bytes"] * (len(items) - len(kept)))},
            there={"shards": len(kept) + len(self.standing.carried)} if len(missing) < len(items) else {},
            work={"shards": len(missing), "trajectories": trajectories, "teacher forward passes": work.forwards,
                  "candidates to score": work.candidates, "tokens through the compass": n["compass_tokens"] * trajectories,
                  "jumps": work.events},
            stages=stages, devices=workers, remarks=self._remarks(rates, workers))

    @property
    def _free(self) -> float | None:
        return self.standing.models.free

    @property
    def _carried_trajectories(self) -> int:
        return sum(self.standing.items[index].stop - self.standing.items[index].start for index in self.standing.carried)

    def _remarks(self, rates: Rates, workers: int) -> list[str]:
        remarks = []
        if workers > rates.workers:
            remarks.append(f"{workers} workers are taken to be as fast as the {rates.workers} that were measured at once")
        if rates.numbers["share"] < 1:
            share = f"{100 * rates.numbers['share']:.0f} %"
            remarks.append(f"a trajectory takes long, so {share} of its time was measured: less is known of the rest")
        return remarks


def measured_for(identity: Identity, models: Models) -> dict[str, Any]:
    """What the rates of a dataset depend on: shapes of networks and settings, but not how many trajectories, or which."""
    compass = models.compass
    shape = compass.network.config.model_dump(mode="json") if isinstance(compass, FittedCompass) else (
        None if models.compass_facts is None else models.compass_facts.fingerprint)
    kind = None if models.compass_facts is None else models.compass_facts.kind
    return {
        "teacher": as_json(models.teacher.network.config), "compass": {"kind": kind, "shape": shape}, "arm": identity.arm,
        "rollout": identity.rollout.model_dump(mode="json", exclude={"seed"}), "shaping": as_json(identity.shaping),
        "device": identity.device} | ({} if models.free is None else {"free positions": round(models.free, 2)})
