"""The command `tsdfm-pipeline import-teacher`: another project's checkpoint becomes a model folder."""

from pathlib import Path

import click

from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.flags import config_command, flags_of, required
from tsdfm.schemas.import_teacher import ImportConfig
from tsdfm.schemas.reports import ImportReport


@config_command("import-teacher", ImportConfig, common="--out --layout --tokenizer --file --source --length", flags=flags_of(
    ImportConfig, skipped=("checkpoint",)))
@click.argument("checkpoint")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the teacher.")
@click.option("--half", is_flag=True, help="Store float16 weights: half the size.")
def import_command(config: ImportConfig, out: Path | None, half: bool) -> ImportReport:
    """Bring another project's teacher or student: CHECKPOINT is a file of weights, a folder with one, or hub:USER/NAME."""
    from tsdfm.pipeline.models.folder import load, refuse_others, save
    from tsdfm.pipeline.models.foreign.importer import import_teacher

    folder = required(out, "--out", "give the folder of the teacher")
    refuse_others(folder)  # before anything is fetched
    imported = import_teacher(config)
    save(folder, imported.network, imported.vocabulary, imported.record, half=half)
    made, origin = imported.network.config, imported.record.imported
    parameters = sum(parameter.numel() for parameter in imported.network.parameters())
    for each in imported.assumed:
        say(f"assumed: {each}")
    others = f" (also there: {', '.join(origin.others)})" if origin.others else ""
    say(f"{folder}: {origin.layout} {origin.weights or 'weights'}{others}, {parameters:,} parameters, {made.source} source, "
        f"{made.vocab_size} ids, length {made.length}, {made.texts} texts, conditioned on {made.conditioning}")
    return ImportReport(out=str(folder), layout=origin.layout, weights=origin.weights, others=origin.others,
                        commit=origin.commit, assumed=imported.assumed, parameters=parameters,
                        fingerprint=load(folder).fingerprint, config=made)
