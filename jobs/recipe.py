"""`tsdfm-pipeline recipe [NAME]`: the configs and scripts that ship with the package, to use by name or to start from."""

import click

from tsdfm.jobs.shell.options import recipes
from tsdfm.schemas.base import InputError
from tsdfm.schemas.regular import read_regular


@click.command("recipe")
@click.argument("name", required=False)
def recipe_command(name: str | None) -> None:
    """Print the recipe NAME, or list all there are.

    A config among them may be given to its command by name, in place of a file: `tsdfm-pipeline generate 170m/generate`. To
    change one, print it into a file of your own.
    """
    shipped = recipes()
    if name is None:
        for each, path in shipped.items():
            first = next(line for line in read_regular(path).decode().splitlines() if line[:2] == "# ")
            click.echo(f"{each:<22}{first.removeprefix('# ')}")
    elif name in shipped:
        click.echo(read_regular(shipped[name]).decode(), nl=False)
    else:
        raise InputError(f"{name}: no such recipe; give one of {', '.join(shipped)}")
