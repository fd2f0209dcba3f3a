"""Publish a dataset: a dataset repository of the Hub that `datasets`, its viewer, and `distill --data hf://...` all read.

    README.md  manifest.json  tokenizer.json  energies.png
    data/train-00000-of-00008.parquet ...      the shards, byte for byte: config `default`, split `train`
    arms/shaped-00000-of-00008.parquet ...     of a dataset of both arms: its rows again, an arm a file

The manifest names shards by checksum, so they travel as they are, and they hold both arms. A split, though, is a set of files:
`datasets` can filter rows by a config's `filters`, as the card of a local folder has it, but the Hub's viewer and every other
reader show the files that the card names, whole. So that the configs `shaped` and `blind`, and `arms` with both as splits, are
the same for everybody, each shard's rows are written once more, arm by arm, which about doubles the bytes (`arm_splits: false`
leaves them out). A dataset of one arm needs no copies: its split is `data/`.

The manifest's hint of where the teacher was is left out if it is a folder of this machine.
"""

import os
import re
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.card import files_pattern
from tsdfm.pipeline.dataset.manifest import CARD_FILE, MANIFEST_FILE, digest, read_manifest, read_shard_bytes
from tsdfm.pipeline.dataset.verify import verify_and_summarise
from tsdfm.pipeline.publishing.dataset_card import PLOT_FILE, published_card
from tsdfm.pipeline.publishing.energy_plot import draw_energies
from tsdfm.pipeline.publishing.receipt import check_receipt, leave_receipt
from tsdfm.pipeline.publishing.upload import Upload
from tsdfm.pipeline.storage.hub.client import check_login
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.schemas.base import InputError
from tsdfm.schemas.manifest import DatasetManifest, Identity, ShardRecord
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.publish import PublishConfig, Receipt
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.words import count

PREPARED_BYTES = 1 << 30  # of shards that are made ready before they are sent
_OWNED = re.compile(r"(data/([0-9]+/)?train|arms/([0-9]+/)?(shaped|blind))-[0-9]+-of-[0-9]+\.parquet"
                    r"|energies\.png|manifest\.json|tokenizer\.json")


def publish_dataset(store: Store, config: PublishConfig, progress: Progress = unheard, mapper: Mapper = in_order) -> Receipt:
    """Bring a repository up to date with a dataset, and leave the receipt in it.

    Every file is read twice: once to check it and to sum it up, by `mapper`, before anything is sent; and once to send it.

    Raises InputError (the dataset is faulty, the login, name or repository not fit: nothing was sent), or WorkError (what
    arrived is kept, the same call goes on).
    """
    read_manifest(store)  # is there anything to publish? asked before anybody need log in
    check_receipt(store)
    check_login(config.repo)
    manifest, faults, summary = verify_and_summarise(store, progress, mapper)
    if faults:
        raise InputError(f"{store.uri}: {count(len(faults), 'fault')}, the first {faults[0]}; run verify to list all, and "
                         "generate to remake what it names; nothing was published")
    identity = manifest.identity
    upload = Upload(config.repo, "dataset", f"{count(manifest.totals.rows, 'trajectory')}, identity {digest(identity)[:16]}")
    upload.open(config.private, MANIFEST_FILE, DatasetManifest, _paths(manifest, config))
    energies: dict[Arm, list[npt.NDArray[np.float32]]] = {arm: [] for arm in identity.arms}
    prepare = partial(_prepared, store, identity, identity.arms if _copies_arms(identity, config) else ())
    for done, (files, of_arms) in enumerate(in_order(prepare, manifest.shards, _threads(manifest))):
        for path, data in files.items():
            upload.add(path, data)
        for arm, values in of_arms.items():
            energies[arm].append(values)
        progress("uploading", done + 1, len(manifest.shards))
    plot = _plot({arm: np.concatenate(parts) for arm, parts in energies.items()})
    card = published_card(manifest, summary, _splits(identity, config), config)
    last = {TOKENIZER_FILE: _must_read(store, TOKENIZER_FILE), **plot, CARD_FILE: card.encode(),
            MANIFEST_FILE: _portable(manifest)}
    revision = upload.finish(last, _owned)
    return leave_receipt(store, upload, revision)


def _prepared(
    store: Store, identity: Identity, copied: Sequence[Arm], record: ShardRecord
) -> tuple[dict[str, bytes], dict[Arm, npt.NDArray[np.float32]]]:
    """The files that a shard becomes, by path: itself, and one of each arm that is `copied`; and every arm's final energies."""
    data = read_shard_bytes(store, record)
    table = shards.decode(data, record.path)[0]
    parts = {arm: table.filter(pc.equal(table.column("arm"), arm)) for arm in identity.arms}
    copies = {_arm_path(record.path, arm): _encoded(parts[arm], identity) for arm in copied}
    return {record.path: data, **copies}, {arm: _final_energies(part) for arm, part in parts.items()}


def _threads(manifest: DatasetManifest) -> int:
    """How many shards are prepared at a time: one a core, or as many as may be held, for twice as many wait to be sent."""
    largest = max(record.bytes for record in manifest.shards)
    return max(1, min(len(os.sched_getaffinity(0)), PREPARED_BYTES // (2 * largest)))


def _owned(path: str) -> bool:
    """Whether a file of the repository is of the kind that this module writes, and deletes when it is no longer part."""
    return _OWNED.fullmatch(path) is not None


def _paths(manifest: DatasetManifest, config: PublishConfig) -> set[str]:
    """Every file that the repository may come to hold."""
    paths = {record.path for record in manifest.shards}
    if _copies_arms(manifest.identity, config):
        paths |= {_arm_path(path, arm) for path in paths for arm in manifest.identity.arms}
    return paths | {TOKENIZER_FILE, PLOT_FILE, CARD_FILE, MANIFEST_FILE}


def _copies_arms(identity: Identity, config: PublishConfig) -> bool:
    return config.arm_splits and len(identity.arms) > 1


def _splits(identity: Identity, config: PublishConfig) -> dict[Arm, str]:
    """Of config `arms`: each split and its files; {} if the arms share files."""
    if len(identity.arms) == 1:
        return {identity.arms[0]: files_pattern(identity)}
    return {arm: _arm_path(files_pattern(identity), arm) for arm in identity.arms} if config.arm_splits else {}


def _arm_path(path: str, arm: str) -> str:
    """data/train-X.parquet -> arms/ARM-X.parquet, with the folder between, if there is one."""
    return path.replace("data/", "arms/", 1).replace("train-", f"{arm}-", 1)


def _encoded(part: pa.Table, identity: Identity) -> bytes:
    """The rows of one arm as a file of their own, in the manner of the dataset's."""
    if identity.shards_per_file is None:
        return shards.encode(part, digest(identity))
    units = (part.slice(first, identity.shard_size) for first in range(0, part.num_rows, identity.shard_size))
    return shards.encode_units(units, digest(identity), 1)


def _final_energies(table: pa.Table) -> npt.NDArray[np.float32]:
    """Those of all rows that have one."""
    values: npt.NDArray[np.float32] = table.column("final_energy").drop_null().to_numpy()
    return values


def _plot(energies: dict[Arm, npt.NDArray[np.float32]]) -> dict[str, bytes]:
    return {PLOT_FILE: draw_energies(energies)} if all(len(values) for values in energies.values()) else {}


def _portable(manifest: DatasetManifest) -> bytes:
    teacher = manifest.teacher if manifest.teacher == "embedded" else None
    return (manifest.model_copy(update={"teacher": teacher}).model_dump_json(indent=2) + "\n").encode()


def _must_read(store: Store, path: str) -> bytes:
    data = store.read(path)
    if data is None:
        raise InputError(f"{store.uri}/{path}: missing; restore it, or run generate again")
    return data
