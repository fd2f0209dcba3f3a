"""Samples and scores in a folder, found again by what they were made from: an evaluation that was killed goes on.

    FOLDER/samples/KEY.parquet   one set of texts: model, steps, temperature, seed, index, text, tokens, nfe, and where texts
                                 go on from prompts: given, the number of these tokens, and beginning, their text
    FOLDER/scores/KEY.parquet    one judge's nats and tokens of each of its texts
    FOLDER/features/KEY.parquet  its features of each of them, where distances of sets of texts were asked for
    FOLDER/counts/KEY.parquet    how many n-grams of each of its texts stand in the corpus, or in trajectories

Every file is written atomically and holds its identity in the schema's metadata, and a checksum of that and its columns; KEY
is a hash of the identity. What is damaged is made anew. The folders can be read whole, e.g.
`polars.read_parquet("FOLDER/samples/*.parquet")`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tsdfm.pipeline.evaluation.judge import Likelihood, Prefixes
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.targets import check_folder
from tsdfm.schemas.base import InputError, WorkError, plain_json
from tsdfm.schemas.evaluate import EvaluateConfig, Results, Row
from tsdfm.schemas.former import replaced, told
from tsdfm.schemas.regular import check_regular, read_regular

RESULTS_FILE, FOLDERS = "results.json", ("samples", "scores", "features", "counts")
METADATA = b"tsdfm"
METHOD: Literal[2] = 2  # of `Results`; texts and scores of another are never taken for these
PROMPTS = "prompts"  # of an identity: its texts go on from some
SAMPLES = pa.schema([
    ("model", pa.string()), ("steps", pa.int32()), ("temperature", pa.float64()), ("seed", pa.int64()), ("index", pa.int32()),
    ("text", pa.string()), ("tokens", pa.list_(pa.int32())), ("nfe", pa.int64())])
PROMPTED = pa.schema([*SAMPLES, pa.field("given", pa.int64()), pa.field("beginning", pa.string())])
SCORES = pa.schema([("nats", pa.float64()), ("tokens", pa.float64())])
FEATURES = pa.schema([("feature", pa.list_(pa.float32()))])
COUNTS = pa.schema([("found", pa.int64())])
Identity = Mapping[str, Any]  # JSON data: all that the content depends on


def key_of(identity: Identity) -> str:
    """sha256 of an identity, hex."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def identity_of_texts(
    config: EvaluateConfig, model: str, steps: int | None, temperature: float | None, prompts: str | None = None
) -> Identity:
    """All that the texts of a model, by fingerprint, depend on, but for the method; `prompts`: the fingerprint of those."""
    computed = {name: getattr(config, name) for name in ("dtype", "compile", "clocks", "length", "until", "overlap")
                if getattr(config, name) != EvaluateConfig.model_fields[name].default}  # which the first folders did not name
    return {"model": model, "steps": steps, "temperature": temperature, "seed": config.seed, "samples": config.samples,
            **computed, **({} if prompts is None else {PROMPTS: prompts})}


def identity_of_scores(identity: Identity, judge: str, method: int) -> Identity:
    """All that a judge's scores of some texts depend on."""
    return {"samples": key_of(identity), "judge": judge, **of_method(method)}


def of_method(method: int) -> Identity:
    """What a method adds to identities; nothing for the first, whose folders are read as they were written."""
    return {} if method == 1 else {"method": method}


class SampleCache:
    """The files of one folder. Raises WorkError where it cannot write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_samples(self, identity: Identity) -> Samples | None:
        """The texts of an identity, if they are there."""
        table, facts = _read(self._path("samples", identity), identity, _columns(identity))
        if table is None:
            return None
        given = None
        if PROMPTS in identity:
            given = Prefixes(table["given"].to_numpy(), table["beginning"].to_pylist())
        nfe = None if facts["seconds"] is None else table["nfe"].to_numpy()
        tokens = np.array(table["tokens"].to_pylist(), dtype=np.int64)
        return Samples(tokens, table["text"].to_pylist(), nfe, facts["seconds"], facts["vocabulary"], facts.get("end_id"),
                       given)

    def samples(self, identity: Identity, labels: Mapping[str, Any], make: Callable[[], Samples]) -> Samples:
        """The texts of an identity, made if they are not there; `labels` are the model, steps, temperature and seed columns."""
        found = self.find_samples(identity)
        if found is not None:
            return found
        made = make()
        rows = len(made.tokens)
        columns = {
            **{name: [labels[name]] * rows for name in ("model", "steps", "temperature", "seed")},
            "index": range(rows), "text": made.texts, "tokens": made.tokens.tolist(),
            "nfe": [None] * rows if made.nfe is None else made.nfe,
        }
        if made.given is not None:
            columns |= {"given": made.given.tokens, "beginning": made.given.texts}
        self._write(self._path("samples", identity), identity, pa.table(columns, _columns(identity)),
                    {"seconds": made.seconds, "vocabulary": made.vocabulary,
                     **({} if made.end_id is None else {"end_id": made.end_id})})
        return made

    def has_samples(self, identity: Identity) -> bool:
        """Whether the texts of an identity are there, whole."""
        return _read(self._path("samples", identity), identity, _columns(identity))[0] is not None

    def find_likelihood(self, identity: Identity, features: bool = False) -> Likelihood | None:
        """The scores of an identity, with the judge's features if they are asked for, if all that is there."""
        table, facts = _read(self._path("scores", identity), identity, SCORES)
        found = self._find_features(identity) if features and table is not None else None
        if table is None or (features and found is None):
            return None
        tokens, window = table["tokens"].to_numpy(), facts.get("window")
        # The first folders, whose texts were scored whole, noted the judge's positions instead.
        before = 0 if window is None else int((tokens > window).sum())
        return Likelihood(table["nats"].to_numpy(), tokens, facts.get("in_windows", before), found)

    def likelihood(self, identity: Identity, make: Callable[[], Likelihood], features: bool = False) -> Likelihood:
        """As `find_likelihood`, made if it is not there; features are kept only if they are asked for."""
        found = self.find_likelihood(identity, features)
        if found is not None:
            return found
        made, path = make(), self._path("scores", identity)
        scores = pa.table({"nats": made.nats, "tokens": made.tokens}, SCORES)
        self._write(path, identity, scores, {"in_windows": made.in_windows})
        if features and made.features is not None:
            table = pa.table({"feature": list(made.features)}, FEATURES)
            self._write(self._path("features", identity), identity, table, {})
        return made

    def _find_features(self, identity: Identity) -> npt.NDArray[np.float32] | None:
        """A judge's features of each text, [R, D]."""
        table, _ = _read(self._path("features", identity), identity, FEATURES)
        return None if table is None else np.array(table["feature"].to_pylist(), np.float32)

    def find_counts(self, identity: Identity) -> npt.NDArray[np.int64] | None:
        """What was counted in each text, [R], of an identity, if it is there."""
        table, _ = _read(self._path("counts", identity), identity, COUNTS)
        return None if table is None else np.asarray(table["found"].to_numpy(), np.int64)

    def keep_counts(self, identity: Identity, found: npt.NDArray[np.int64]) -> None:
        """Keep what was counted in each text, [R]."""
        self._write(self._path("counts", identity), identity, pa.table({"found": found}, COUNTS), {})

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder, atomically."""
        self._write_bytes(self.folder / name, data)

    def _path(self, kind: str, identity: Identity) -> Path:
        return self.folder / kind / f"{key_of(identity)[:32]}.parquet"

    def _write(self, path: Path, identity: Identity, table: pa.Table, facts: Identity) -> None:
        told = {"identity": identity, **facts}
        table = table.replace_schema_metadata({METADATA: json.dumps({**told, "sha256": _digest(table, told)})})
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


def kept_texts(results: Results, row: Row, folder: Path) -> tuple[Samples, dict[str, Likelihood]]:
    """The texts of one row, and what each judge said of them, as the folder of the evaluation keeps them.

    Raises WorkError if they are not there any more.
    """
    def lost() -> Any:
        raise WorkError(f"{folder}: lost the texts of {row.model} in {row.steps} steps; run again")

    kept, method = SampleCache(folder), results.method
    texts = identity_of_texts(results.settings, row.fingerprint, row.steps, row.temperature, row.prompts)
    identity = {**texts, **of_method(method)}
    return kept.samples(identity, {}, lost), {
        name: kept.likelihood(identity_of_scores(identity, judge.fingerprint, method), lost)
        for name, judge in results.judges.items()}


def has_texts(config: EvaluateConfig, model: str, steps: int, temperature: float, prompts: str | None) -> bool:
    """Whether the folder of an evaluation has texts: model and prompts by fingerprint, step count, temperature."""
    identity = {**identity_of_texts(config, model, steps, temperature, prompts), **of_method(METHOD)}
    return config.out is not None and SampleCache(Path(config.out)).has_samples(identity)


def check_results(folder: Path) -> None:
    """Refuse a folder that holds something else than an evaluation. Raises InputError."""
    check_folder(folder, {RESULTS_FILE, *FOLDERS}, "evaluation")


def replaced_since(results: Path, fingerprints: Sequence[str]) -> list[str]:
    """A remark, where the figures of an earlier run are of an embedded judge that this version of the package has replaced.

    `results`: its file, if there is one; `fingerprints`: of the judges of this run.
    """
    try:
        old = plain_json(read_regular(results), str(results))
    except (InputError, OSError):
        return []
    judges = replaced(old.get("judges") if isinstance(old, dict) else None, fingerprints)
    return [f"the {results.name} that was here is of {told(judges)}; its figures don't compare with these"] if judges else []


def _columns(identity: Identity) -> pa.Schema:
    return PROMPTED if PROMPTS in identity else SAMPLES


def _read(path: Path, identity: Identity, schema: pa.Schema) -> tuple[pa.Table | None, dict[str, Any]]:
    """The table of a file and its facts; (None, {}) if it is not there, not whole, damaged, or of another identity."""
    try:
        check_regular(path)
        table = pq.read_table(path)
        table.validate(full=True)
        facts = plain_json(table.schema.metadata[METADATA], str(path))
        noted = facts.pop("sha256", None)  # which the first versions did not note
        whole = (table.schema.remove_metadata() == schema and facts["identity"] == dict(identity)
                 and noted in (None, _digest(table, facts)))
        return (table, facts) if whole else (None, {})
    except Exception:  # a damaged file may raise anything, and is made anew
        return None, {}


def _digest(table: pa.Table, facts: Identity) -> str:
    """sha256 of what the columns of a table hold, and of its facts, hex."""
    return hashlib.sha256(f"{table.to_pydict()} {json.dumps(facts, sort_keys=True)}".encode()).hexdigest()
