"""Who reads a dataset's files for a command: threads here, or the tasks of a cluster. Ray is imported only for the latter."""

from contextlib import AbstractContextManager, nullcontext

import click

from tsdfm.pipeline.storage.in_order import Mapper, in_order

address_option = click.option("--address", default="local", show_default=True, help=(
    "Where files are read: 'local' for threads of this process, 'auto' or HOST:PORT for tasks of a Ray cluster."))


def readers_at(address: str) -> AbstractContextManager[Mapper]:
    """Who reads files, for the time of a job: threads, or tasks of one core each on the cluster at an address.

    Raises InputError if there is no such cluster.
    """
    if address == "local":
        return nullcontext(in_order)
    from tsdfm.jobs.crew.mapper import mapper_at

    return mapper_at(address)
