"""The command `tsdfm-pipeline pretrain`.

The training state and TensorBoard logs stand beside the model in OUT.training; a rerun resumes from there.
"""

from pathlib import Path

import click

from tsdfm.jobs.plan.show import show_plan
from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.flags import Planner, config_command, flags_of, required
from tsdfm.schemas.plan import Plan, PlanWish
from tsdfm.schemas.reports import TeacherReport
from tsdfm.schemas.train import PretrainConfig
from tsdfm.schemas.training_record import PretrainRecord

FLAGS = {"corpus.path": "--corpus", "optim.steps": "--updates"}


def _plan(config: PretrainConfig, wish: PlanWish, out: Path | None, half: bool) -> Plan:
    from tsdfm.jobs.train.plan import plan_pretrain

    return plan_pretrain(config, wish, required(out, "--out", "give the folder of the teacher"), half=half)


@config_command("pretrain", PretrainConfig, planner=Planner(_plan, show_plan), flags=flags_of(PretrainConfig, FLAGS), common=(
    "--out --corpus --text-field --clean --tokenizer --source --length --updates --threads --workers --address --seed --plan"))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the teacher.")
@click.option("--half", is_flag=True, help="Store float16 weights: half the size.")
def pretrain_command(config: PretrainConfig, out: Path | None, half: bool) -> TeacherReport:
    """Train a teacher from text; run it again to resume.

    A teacher is a denoiser: a network that sees a text of which a part is still noise, at a time t, and says for every position
    which token will stand there in the end. CONFIG is a YAML file; flags override it.
    """
    from functools import partial

    from tsdfm.jobs.train.run import train
    from tsdfm.pipeline.training.pretrain import is_made, pretrain_at

    folder = required(out, "--out", "give the folder of the teacher")
    record = train("pretrain", partial(pretrain_at, half=half), partial(is_made, half=half), config, folder,
                   PretrainRecord)
    say(f"{folder}: trained; on held-out text {record.held_out_cross_entropy:.4f} nats per noised token, negative ELBO "
        f"{record.held_out_negative_elbo:.4f} nats per token")
    return TeacherReport(out=str(folder), **dict(record))
