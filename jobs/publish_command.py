"""`tsdfm-pipeline publish`: a dataset or a student to the Hub; run it again to go on, or to send what changed.

The token is that of `hf auth login` or of HF_TOKEN. Heavy imports happen inside the functions, so that `--help` answers
at once.
"""

import shlex
from contextlib import ExitStack
from typing import Any

import click

from tsdfm.jobs.console import Ticker, emit, people, ticker
from tsdfm.jobs.interrupts import Interrupted, interruptible, resume_command
from tsdfm.schemas.base import InputError, parse
from tsdfm.schemas.publish import PublishConfig, Receipt


@click.command()
@click.argument("out")
@click.option("--repo", required=True, metavar="USER/NAME", help="The repository; made if it does not exist.")
@click.option("--private", is_flag=True, help="Nobody else may see it.")
@click.option("--license", metavar="ID", help="Licence id for the card, e.g. apache-2.0.  [unknown]")
@click.option("--arm-splits/--no-arm-splits", default=None, help=(
    "Of both arms: copy each arm's rows, so that an arm is a split.  [yes]"))
@click.option("--evaluation", metavar="DIR", help="Of a student: the OUT of `evaluate`, for the card's table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def publish_command(as_json: bool, **flags: Any) -> None:
    """Publish the dataset or student in OUT on the Hub (log in with 'hf auth login', or set HF_TOKEN)."""
    config = parse(PublishConfig, {name: value for name, value in flags.items() if value is not None}, "command line")
    receipt = publish(config)
    sent = f"{receipt.changed_files} of {receipt.files} files sent, {receipt.changed_bytes:,} bytes" if receipt.changed else (
        "nothing has changed, nothing was sent")
    people.print(f"{config.out}: {receipt.kind} {receipt.repo} at revision {receipt.revision}: {sent}", markup=False)
    use = f"tsdfm-pipeline distill --data {receipt.uri} --out STUDENT" if receipt.kind == "dataset" else receipt.uri
    people.print(use, markup=False)
    if as_json:
        emit({"out": config.out, "changed": receipt.changed, **receipt.model_dump(mode="json")})


def publish(config: PublishConfig) -> Receipt:
    """Publish what `config.out` holds. Raises InputError (nothing was sent) or WorkError (the same command goes on)."""
    from tsdfm.pipeline.checkpoint import CONFIG_FILE
    from tsdfm.pipeline.publish import publish_dataset
    from tsdfm.pipeline.publish_student import publish_student
    from tsdfm.pipeline.storage import Store

    store = Store(config.out)
    with interruptible("finishing the upload in hand") as interrupted, _Stages() as stages:
        def progress(stage: str, done: int, total: int) -> None:
            stages.show(stage, done, total)
            if interrupted and done < total:
                raise Interrupted(f"stopped while {stage}; what arrived is kept; resume with: {shlex.join(resume_command())}")

        if store.local is not None and (store.local / CONFIG_FILE).is_file():
            return publish_student(store.local, config, progress)
        if config.evaluation is not None:
            raise InputError("--evaluation: is of students; leave it out for a dataset")
        return publish_dataset(store, config, progress)


class _Stages(ExitStack):
    """One ticker after another, each for a stage of the work."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = ""
        self._ticker: Ticker | None = None

    def show(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage."""
        if stage != self._stage:
            self.close()
            self._stage, self._ticker = stage, self.enter_context(ticker(stage, total))
        assert self._ticker is not None
        self._ticker.update(done)
