"""Samples and scores in a folder, found again by what they were made from: an evaluation that was killed goes on.

    FOLDER/samples/KEY.parquet   one set of texts: model, steps, temperature, seed, index, text, tokens, nfe
    FOLDER/scores/KEY.parquet    one judge's nats and tokens of each of its texts

Every file is written atomically and holds its identity in the schema's metadata; KEY is a hash of the identity. The folders can
be read whole, e.g. `polars.read_parquet("FOLDER/samples/*.parquet")`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.regular import check_regular

METADATA = b"tsdfm"
Identity = Mapping[str, Any]  # JSON data: all that the content depends on


def key_of(identity: Identity) -> str:
    """sha256 of an identity, hex."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class SampleCache:
    """The files of one folder. Raises WorkError where it cannot write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def samples(self, identity: Identity, labels: Mapping[str, Any], make: Callable[[], Samples]) -> Samples:
        """The texts of an identity, made if they are not there; `labels` are the model, steps, temperature and seed columns."""
        path = self._path("samples", identity)
        table = _read(path, identity)
        if table is not None:
            facts = json.loads(table.schema.metadata[METADATA])
            nfe = None if facts["seconds"] is None else table["nfe"].to_numpy()
            tokens = np.array(table["tokens"].to_pylist(), dtype=np.int64)
            return Samples(tokens, table["text"].to_pylist(), nfe, facts["seconds"], facts["vocabulary"])
        made = make()
        rows = len(made.tokens)
        columns = {
            "model": pa.array([labels["model"]] * rows, pa.string()),
            "steps": pa.array([labels["steps"]] * rows, pa.int32()),
            "temperature": pa.array([labels["temperature"]] * rows, pa.float64()),
            "seed": pa.array([labels["seed"]] * rows, pa.int64()),
            "index": pa.array(range(rows), pa.int32()),
            "text": pa.array(made.texts, pa.string()),
            "tokens": pa.array(made.tokens.tolist(), pa.list_(pa.int32())),
            "nfe": pa.array([None] * rows if made.nfe is None else made.nfe, pa.int64()),
        }
        self._write(path, identity, columns, {"seconds": made.seconds, "vocabulary": made.vocabulary})
        return made

    def likelihood(self, identity: Identity, make: Callable[[], Likelihood]) -> Likelihood:
        """The scores of an identity, made if they are not there."""
        path = self._path("scores", identity)
        table = _read(path, identity)
        if table is not None:
            window = json.loads(table.schema.metadata[METADATA]).get("window")
            return Likelihood(table["nats"].to_numpy(), table["tokens"].to_numpy(), window)
        made = make()
        self._write(path, identity, {"nats": pa.array(made.nats), "tokens": pa.array(made.tokens)}, {"window": made.window})
        return made

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder, atomically."""
        self._write_bytes(self.folder / name, data)

    def _path(self, kind: str, identity: Identity) -> Path:
        return self.folder / kind / f"{key_of(identity)[:32]}.parquet"

    def _write(self, path: Path, identity: Identity, columns: Mapping[str, pa.Array], facts: Identity) -> None:
        table = pa.table(dict(columns))
        table = table.replace_schema_metadata({METADATA: json.dumps({"identity": identity, **facts})})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._write_bytes(path, buffer.getvalue())

    def _write_bytes(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise WorkError(f"{path}: cannot be written ({error.strerror}); what is there is kept, mend that and run again"
                            ) from None


def _read(path: Path, identity: Identity) -> pa.Table | None:
    """The table of a file; None if it is not there, not whole, or of another identity."""
    try:
        check_regular(path)
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    facts = (table.schema.metadata or {}).get(METADATA)
    return table if facts is not None and json.loads(facts)["identity"] == dict(identity) else None
