"""Damage that no checksum tells of: rows and records of a dataset are changed, and all that is computed of them made right again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import digest, read_manifest, read_shard, read_vocabulary
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.manifest import Identity


def forge(out: Path, change: Callable[[dict[str, Any]], object] = lambda row: None, **prompts: object) -> None:
    """Change every row of a dataset in place, and fields of what its manifest says of prompts; identities, checksums and sizes agree."""
    store = open_store(str(out))
    manifest, data = read_manifest(store), json.loads((out / "manifest.json").read_text())
    vocabulary = read_vocabulary(store, manifest)
    if prompts:
        data["identity"]["prompts"].update(prompts)
    owner = digest(Identity.model_validate(data["identity"]))
    for record, noted in zip(manifest.shards, data["shards"], strict=True):
        table = read_shard(store, record)
        rows = table.to_pylist()
        for row in rows:
            change(row)
            row["text"] = vocabulary.decode(row["tokens"])
        content = shards.encode(pa.Table.from_pylist(rows, schema=table.schema.remove_metadata()), owner)
        (out / record.path).write_bytes(content)
        noted.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    data["totals"]["bytes"] = sum(noted["bytes"] for noted in data["shards"])
    (out / "manifest.json").write_text(json.dumps(data))
