"""The command `tsdfm-pipeline verify`."""

import click

from tsdfm.jobs.crew.reading import address_option, readers_at
from tsdfm.jobs.shell.console import Stages, emit, output_kept_for_json, say, tell
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.reports import FaultReport, VerifyReport


@click.command("verify")
@click.argument("out")
@address_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def verify_command(out: str, address: str, as_json: bool) -> None:
    """Check every file and every row of the dataset in OUT, a folder, a URI, or hf://datasets/USER/NAME[@REVISION].

    Every fault is named. Exit code 0: sound; 1: there and faulty; 2: no dataset there.
    """
    from tsdfm.pipeline.dataset.manifest import MANIFEST_FILE
    from tsdfm.pipeline.dataset.verify import verify
    from tsdfm.pipeline.storage.open_store import open_store

    store = open_store(out)
    with output_kept_for_json(), readers_at(address) as mapper, Stages() as progress:
        try:
            manifest, faults = verify(store, progress, mapper)
        except InputError as error:
            if store.read(MANIFEST_FILE) is None:
                raise
            raise WorkError(str(error)) from None  # there is a dataset, and its manifest is at fault
    for fault in faults:
        say(f"{store.uri}/{fault}")
    if as_json:
        emit(VerifyReport(out=out, sound=not faults, rows=manifest.totals.rows, shards=len(manifest.shards),
                          faults=[FaultReport(path=each.path, row=each.row, what=each.what) for each in faults]))
    if faults:
        raise WorkError(f"{store.uri}: {count(len(faults), 'fault')}; restore the files named above, or run generate again to "
                        "remake them")
    shown = say if as_json else tell
    shown(f"{store.uri}: sound: {count(manifest.totals.rows, 'trajectory')} in "
          f"{count(len(manifest.shards), 'shard')}")
