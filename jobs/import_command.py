"""The command `tsdfm-pipeline import-teacher`: another project's checkpoint becomes a model folder."""

from pathlib import Path
from typing import Any

import click

from tsdfm.jobs.console import emit, people


@click.command()
@click.argument("checkpoint")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the teacher.")
@click.option("--layout", type=click.Choice(["auto", "fs-dfm", "mdlm"]), help="[auto]")
@click.option("--tokenizer", help="tokenizer.json, or a folder with one.  [beside CHECKPOINT]")
@click.option("--eos", metavar="TOKEN", help="Token that ends a text.  [as the tokenizer says]")
@click.option("--source", type=click.Choice(["mask", "uniform"]), help="[told by the vocabulary's size]")
@click.option("--weights", metavar="NAME", help="Which weights of a file that has several.  [student's EMA, student, EMA, ...]")
@click.option("--heads", type=int, help="Attention heads.  [from CHECKPOINT]")
@click.option("--length", type=int, help="Sequence length in tokens.  [from CHECKPOINT, or 1024]")
@click.option("--kappa-exponent", type=float, help="n of its schedule kappa_t = t^n.  [1.0]")
@click.option("--time-conditioning/--no-time-conditioning", default=None, help="MDLM: told sigma.  [from CHECKPOINT, or no]")
@click.option("--half", is_flag=True, help="Store float16 weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def import_command(out: Path, half: bool, as_json: bool, **flags: Any) -> None:
    """Bring a teacher or student of FS-DFM or MDLM: CHECKPOINT is a .safetensors or torch file, or a folder with one."""
    from tsdfm.jobs.options import build
    from tsdfm.pipeline.checkpoint import load, save
    from tsdfm.pipeline.import_teacher import import_teacher
    from tsdfm.schemas.import_teacher import ImportConfig

    imported = import_teacher(build(ImportConfig, None, flags))
    save(out, imported.network, imported.vocabulary, imported.facts, half=half)
    config, facts = imported.network.config, imported.facts["imported"]
    parameters = sum(parameter.numel() for parameter in imported.network.parameters())
    others = f" (also there: {', '.join(facts['others'])})" if facts["others"] else ""
    people.print(f"{out}: {facts['layout']} {facts['weights'] or 'weights'}{others}, {parameters:,} parameters, "
                 f"{config.source} source, {config.vocab_size} ids, length {config.length}, conditioned on "
                 f"{config.conditioning}", markup=False)
    if as_json:
        emit({"out": str(out), "layout": facts["layout"], "weights": facts["weights"], "others": facts["others"],
              "parameters": parameters, "fingerprint": load(out).fingerprint, "config": config.model_dump(mode="json")})
