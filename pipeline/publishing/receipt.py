"""The receipt of a publication, OUT/published.json: where the folder's content stands on the Hub."""

from datetime import UTC, datetime

from tsdfm.pipeline.publishing.upload import Upload
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError, parse_json
from tsdfm.schemas.publish import RECEIPT_FILE, Receipt


def check_receipt(store: Store) -> None:
    """Raises InputError if OUT/published.json is there and no receipt, which a publication would write over; ask first."""
    _former(store)


def leave_receipt(store: Store, upload: Upload, revision: str) -> Receipt:
    """Write OUT/published.json, unless the one there is of the same revision and nothing was sent."""
    kept = _former(store)
    prefix = "hf://datasets/" if upload.kind == "dataset" else "hf://"
    receipt = Receipt(
        repo=upload.repo, kind=upload.kind, revision=revision, uri=f"{prefix}{upload.repo}@{revision}", files=upload.files,
        bytes=upload.bytes, changed_files=upload.changed_files, changed_bytes=upload.changed_bytes,
        deleted_files=upload.deleted_files, published=datetime.now(UTC).isoformat(timespec="seconds"))
    same = kept is not None and (kept.repo, kept.kind, kept.revision) == (receipt.repo, receipt.kind, revision)
    if receipt.sent_anything or not same:
        store.write(RECEIPT_FILE, (receipt.model_dump_json(indent=2) + "\n").encode())
    return receipt


def _former(store: Store) -> Receipt | None:
    kept, where = store.read(RECEIPT_FILE), f"{store.uri}/{RECEIPT_FILE}"
    try:
        return None if kept is None else parse_json(Receipt, kept, where)
    except InputError:
        raise InputError(f"{where}: is not the receipt of a publication, whose place that is; remove it, or give it "
                         "another name") from None
