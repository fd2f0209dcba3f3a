"""An opened dataset: its manifest, its vocabulary, and its rows, each a trajectory that can be replayed to any time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import floor

from tsdfm.pipeline.dataset.jump_log import Int32, JumpLog
from tsdfm.pipeline.dataset.manifest import known_groups, read_manifest, read_vocabulary
from tsdfm.pipeline.dataset.shards import to_log
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.terms import Arm

TIME_SLACK = 1e-9  # of t N, which may miss a whole number by a rounding


@dataclass(frozen=True, kw_only=True)
class Row(JumpLog):
    """One trajectory in one arm, as `JumpLog`, with what it takes to replay it."""

    steps: int  # N of the time grid
    mask_id: int | None  # id of [MASK]; None: the uniform source
    text: str  # the decoded tokens


class Dataset:
    """A finished dataset of trajectories. Its rows are read a row group at a time; iterating gives all of them."""

    def __init__(self, store: Store, manifest: DatasetManifest) -> None:
        self.store, self.manifest = store, manifest

    def __len__(self) -> int:
        """Rows, counted in every arm."""
        return self.manifest.totals.rows

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer that decodes its tokens. Raises InputError if it is missing or another one."""
        return read_vocabulary(self.store, self.manifest)

    def rows(self, arm: Arm | None = None) -> Iterator[Row]:
        """Every row, or those of one arm, in order of trajectory id, shaped before blind.

        Raises InputError if a shard is missing, changed or unsound.
        """
        for index in range(len(self.manifest.shards)):
            yield from (row for row in self._shard(index) if arm in (None, row.arm))

    def row(self, trajectory_id: int, arm: Arm | None = None) -> Row:
        """One trajectory; of a dataset of both arms the shaped one, unless `arm` says otherwise.

        Raises InputError: no such trajectory or arm, or a shard that is missing, changed or unsound.
        """
        identity = self.manifest.identity
        if 0 <= trajectory_id < identity.trajectories:
            for row in self._shard(trajectory_id // identity.trajectories_per_file):
                if row.trajectory_id == trajectory_id and arm in (None, row.arm):
                    return row
        raise InputError(f"trajectory {trajectory_id}{f' ({arm})' if arm else ''}: {self.store.uri} holds ids "
                         f"0..{identity.trajectories - 1} of {', '.join(identity.arms)}; give one of those")

    def _shard(self, index: int) -> Iterator[Row]:
        identity = self.manifest.identity
        grid = identity.grid
        for table in known_groups(self.store, self.manifest.shards[index], identity):
            texts = table.column("text").to_pylist()
            for number in range(table.num_rows):
                yield Row(**vars(to_log(table, number)), steps=grid.steps, mask_id=grid.mask_id, text=texts[number])


def open_dataset(where: str) -> Dataset:
    """Open a finished dataset: a folder, a filesystem URI, or hf://datasets/USER/NAME[@REVISION].

    Raises InputError if there is none, or its manifest is at fault.
    """
    store = open_store(str(where))
    return Dataset(store, read_manifest(store))


def replay(row: Row, t: float) -> Int32:
    """The state x_t of a trajectory, [L] int32 token ids: its source with every jump up to time t made, without loss.

    A jump of step s, made between the times s/N and (s + 1)/N, counts from (s + 1)/N on.

    Args:
        row: of an opened dataset.
        t: in [0, 1]; 0 gives the source, 1 the finished text.

    Raises:
        ValueError: t is outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], not {t}")
    return row.state_after(floor(t * row.steps + TIME_SLACK) - 1, row.mask_id)
