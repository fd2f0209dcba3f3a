"""`tsdfm-pipeline generate`: plan shards, have Ray make them, collect receipts, commit the manifest, report.

    laptop:   tsdfm-pipeline generate --out OUT
    cluster:  ray start --head (and workers), then: tsdfm-pipeline generate --out OUT --address auto

Every shard is a pure function of the config, written by its worker and renamed into place; only receipts travel. Running the
same command again keeps every sound shard and makes the rest. The manifest, written last, is the commit.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from tsdfm.jobs.crew.census import census
from tsdfm.jobs.crew.collect import Told, collect
from tsdfm.jobs.crew.mapper import spread
from tsdfm.jobs.crew.names import anchored
from tsdfm.jobs.crew.tasks import Call, Need, Tasks
from tsdfm.jobs.generate.worker import Order, make
from tsdfm.jobs.shell.cluster import cluster, cores_here, gpus_at
from tsdfm.jobs.shell.console import Stages, say, say_if_slow
from tsdfm.pipeline.dataset.manifest import Finished, ShardPlan
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.pipeline.flow.generate import Work, generate_dataset
from tsdfm.pipeline.flow.prompts import Given
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.progress import Progress
from tsdfm.schemas.reports import GenerateReport


def generate(config: GenerateConfig) -> GenerateReport:
    """Make, or go on making, the dataset of a config on Ray. Returns the report that `--json` prints.

    Raises InputError (nothing was changed) or WorkError (finished shards are kept, the same command resumes).
    """
    torch.set_num_threads(config.rollout.threads)
    config = anchored_models(config)
    with ExitStack() as held, Stages() as progress:
        report = generate_dataset(config, progress=progress, maker=_OnRay(config, held))
    for path in report.unsound:
        say(f"{config.out}/{path}: was there and unsound, and has been made again")
    return report


def anchored_models(config: GenerateConfig) -> GenerateConfig:
    """The config with absolute local paths of models: workers may stand in another directory."""
    names = {field: getattr(config, field) for field in ("teacher", "compass")}
    return config.model_copy(update={field: anchored(name) for field, name in names.items()})


class _OnRay:
    """Makes shards on Ray. Ray is connected, or started, when it is needed, and `held` lets it go."""

    def __init__(self, config: GenerateConfig, held: ExitStack) -> None:
        self.config, self.held = config, held

    def device(self) -> torch.device:
        """The device that shards are made on: a GPU if the workers will have one, else the CPU. Connects to a cluster."""
        if self.config.address != "local":
            self.held.enter_context(cluster(self.config.address, None))
        device = torch.device("cuda" if gpus_at(self.config.address) else "cpu")
        say_if_slow(self.config.rollout.dtype, device.type == "cuda")
        return device

    @property
    def mapper(self) -> Mapper:
        """See `Maker.mapper`: tasks of the cluster that this is connected to by now, or threads."""
        return in_order if self.config.address == "local" else spread

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        """See `Maker.make`."""
        work.models.to(torch.device("meta"))  # they have said what they are; workers open their own
        gpus, threads = gpus_at(self.config.address), self.config.rollout.threads
        if self.config.address == "local":
            cores = cores_here()
            wanted = min(len(missing), self.config.workers or gpus or max(1, cores // threads))
            self.held.enter_context(cluster("local", max(cores, wanted * threads)))
        asking = self.held.enter_context(census("finished shards are kept"))
        need = Need("GPU", 1) if gpus else Need("CPU", threads)
        workers = min(len(missing), self.config.workers or need.places(asking))
        say(f"{len(missing)} of {count(len(work.items), 'shard')} to make, {count(workers, f'{need.what} worker')}")
        if work.identity.blocks is not None:
            say(f"texts in blocks: {work.identity.blocks.per_text} trajectories each")
        order, made = Order.of(self.config, work.identity, work.store.address), dict[int, Finished]()
        call = Call("ShardWorker.make", make, lambda index: (order, work.items[index], _given(work, index)), alike=True)
        tasks: Tasks[Finished] = Tasks(call, need, self.config.workers, asking)
        collect(tasks, _told(work.items), missing, made.__setitem__, work.check)
        return made


def _given(work: Work, index: int) -> Given | None:
    """The prompts of one unit of work, which travel with it."""
    item = work.items[index]
    return None if work.models.given is None else work.models.given.of_trajectories(item.start, item.stop)


def _told(items: Sequence[ShardPlan]) -> Told:
    """How people are told of shards."""
    return Told("making shards", "shard", lambda index: items[index].path, lambda index: items[index].stop - items[index].start,
                "trajectories", "finishing the shards in hand", cure="lower rollout.batch_size")
