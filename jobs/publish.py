"""The command `tsdfm-pipeline publish`: a dataset or a student to the Hub; run it again to go on, or to send what changed.

The token is that of `hf auth login` or of HF_TOKEN.
"""

import shlex

import click

from tsdfm.jobs.crew.reading import readers_at
from tsdfm.jobs.shell.console import Stages, say
from tsdfm.jobs.shell.flags import config_command, flags_of
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.schemas.base import InputError
from tsdfm.schemas.publish import PublishConfig, Receipt
from tsdfm.schemas.reports import PublishReport


@config_command("publish", PublishConfig, common="--repo --private --license --evaluation", flags=flags_of(
    PublishConfig, skipped=("out",)))
@click.argument("out")
def publish_command(config: PublishConfig) -> PublishReport:
    """Publish the dataset or student in OUT on the Hub (log in with 'hf auth login', or set HF_TOKEN)."""
    receipt = publish(config)
    sent = (f"{receipt.changed_files} of {receipt.files} files sent, {receipt.changed_bytes:,} bytes" if receipt.sent_anything
            else "nothing has changed, nothing was sent")
    say(f"{config.out}: {receipt.kind} {receipt.repo} at revision {receipt.revision}: {sent}")
    say(f"tsdfm-pipeline distill --data {receipt.uri} --out STUDENT" if receipt.kind == "dataset" else receipt.uri)
    return PublishReport(out=config.out, changed=receipt.sent_anything, **dict(receipt))


def publish(config: PublishConfig) -> Receipt:
    """Publish what `config.out` holds. Raises InputError (nothing was sent) or WorkError (the same command goes on)."""
    from tsdfm.pipeline.models.folder import CONFIG_FILE
    from tsdfm.pipeline.publishing.dataset import publish_dataset
    from tsdfm.pipeline.publishing.student import publish_student
    from tsdfm.pipeline.storage.open_store import open_store

    store = open_store(config.out)
    with interruptible("finishing the upload in hand") as interrupted, Stages() as stages:
        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            stages(stage, done, total, note)
            if interrupted and done < total:
                raise Interrupted(f"stopped while {stage}; what arrived is kept; resume with: {shlex.join(resume_command())}")

        if store.local is not None and (store.local / CONFIG_FILE).is_file():
            return publish_student(store.local, config, progress)
        if config.evaluation is not None:
            raise InputError("--evaluation: is of students; leave it out for a dataset")
        with readers_at(config.address) as mapper:
            return publish_dataset(store, config, progress, mapper)
