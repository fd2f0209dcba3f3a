"""The command `tsdfm-pipeline fit-compass`.

The training state and TensorBoard logs stand beside the model in OUT.training; a rerun resumes from there.
"""

from pathlib import Path

import click

from tsdfm.jobs.plan.show import show_plan
from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.flags import Planner, config_command, flags_of, required
from tsdfm.schemas.plan import Plan, PlanWish
from tsdfm.schemas.reports import CausalReport, ContrastReport, NceReport
from tsdfm.schemas.train import CompassConfig
from tsdfm.schemas.training_record import CausalRecord, ContrastRecord, NceRecord

FLAGS = {"corpus.path": "--corpus", "optim.steps": "--updates"}


def _plan(config: CompassConfig, wish: PlanWish, out: Path | None, half: bool) -> Plan:
    from tsdfm.jobs.train.plan import plan_fit_compass

    return plan_fit_compass(config, wish, required(out, "--out", "give the folder of the compass"), half=half)


@config_command("fit-compass", CompassConfig, planner=Planner(_plan, show_plan), flags=flags_of(CompassConfig, FLAGS), common=(
    "--out --teacher --corpus --text-field --clean --part --kind --updates --threads --workers --address --seed --plan"))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the compass or judge.")
@click.option("--half", is_flag=True, help="Store float16 weights: half the size.")
def fit_compass_command(config: CompassConfig, out: Path | None, half: bool) -> CausalReport | NceReport | ContrastReport:
    """Fit a compass, or, on the other half of the corpus, a judge; run it again to resume.

    A compass scores how coherent a text is while it is being written; a judge, which must not share its text, scores finished
    ones. CONFIG is a YAML file; flags override it.
    """
    from functools import partial

    from tsdfm.jobs.train.run import train
    from tsdfm.pipeline.training.fit_compass import fit_at, is_made

    folder = required(out, "--out", "give the folder of the compass")
    loop, made = partial(fit_at, half=half), partial(is_made, half=half)
    if config.kind == "nce":
        noise = train("fit-compass", loop, made, config, folder, NceRecord)
        bins = ", ".join(f"{each.auc:.3f} (t = {each.t_from:.2f}-{each.t_to:.2f})" for each in noise.held_out_auc)
        say(f"{folder}: fitted; held-out AUC of real against teacher states: {bins}")
        return NceReport(out=str(folder), **dict(noise))
    if config.kind == "contrast":
        both = train("fit-compass", loop, made, config, folder, ContrastRecord)
        say(f"{folder}: fitted; held-out AUC of real against the teacher's texts {both.held_out_auc:.3f}; of the latter "
            f"{both.teachers_nats:.3f} nats per token by the copy, {both.teachers_nats_before:.3f} before")
        return ContrastReport(out=str(folder), **dict(both))
    causal = train("fit-compass", loop, made, config, folder, CausalRecord)
    say(f"{folder}: fitted; held-out perplexity {causal.held_out_perplexity:.2f} per token")
    return CausalReport(out=str(folder), **dict(causal))
