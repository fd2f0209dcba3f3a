"""The receipt of a publication, OUT/published.json: where the folder's content stands on the Hub."""

from datetime import UTC, datetime

from tsdfm.pipeline.publishing.upload import Upload
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import parse_json
from tsdfm.schemas.publish import RECEIPT_FILE, Receipt


def leave_receipt(store: Store, upload: Upload, revision: str) -> Receipt:
    """Write OUT/published.json, unless the one there is of the same revision and nothing was sent."""
    kept = store.read(RECEIPT_FILE)
    prefix = "hf://datasets/" if upload.kind == "dataset" else "hf://"
    receipt = Receipt(
        repo=upload.repo, kind=upload.kind, revision=revision, uri=f"{prefix}{upload.repo}@{revision}", files=upload.files,
        bytes=upload.bytes, changed_files=upload.changed_files, changed_bytes=upload.changed_bytes,
        deleted_files=upload.deleted_files, published=datetime.now(UTC).isoformat(timespec="seconds"))
    if kept is not None and not receipt.sent_anything:
        old = parse_json(Receipt, kept, f"{store.uri}/{RECEIPT_FILE}")
        if (old.repo, old.kind, old.revision) == (receipt.repo, receipt.kind, revision):
            return receipt
    store.write(RECEIPT_FILE, (receipt.model_dump_json(indent=2) + "\n").encode())
    return receipt
