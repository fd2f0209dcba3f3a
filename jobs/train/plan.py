"""`pretrain --plan` and `fit-compass --plan`: what a training on text will cost; nothing is made."""

from functools import partial
from pathlib import Path

from tsdfm.jobs.plan.plan import check_writable, plan_of, started_seconds
from tsdfm.jobs.plan.training import TrainingJob, updates_done
from tsdfm.jobs.shell.console import say_corpus
from tsdfm.jobs.shell.trackers import check_tracker
from tsdfm.jobs.train.run import with_anchored_paths
from tsdfm.pipeline.models.folder import load_denoiser, teacher_folder
from tsdfm.pipeline.training.fit_compass import check, fit_at
from tsdfm.pipeline.training.pretrain import pretrain_at
from tsdfm.pipeline.training.text_trainer import given_vocabulary
from tsdfm.schemas.optim import DIVISION
from tsdfm.schemas.plan import Plan, PlanWish
from tsdfm.schemas.train import CompassConfig, PretrainConfig


def plan_pretrain(config: PretrainConfig, wish: PlanWish, out: Path, *, half: bool) -> Plan:
    """The plan of a teacher. Raises InputError where the run would; nothing is written."""
    check_tracker(config.tracker)
    check_writable(out)
    config = with_anchored_paths(config)
    given = given_vocabulary(config)
    made_with = {} if given is None else {"tokenizer_fingerprint": given.fingerprint}
    done = updates_done(out, {**config.model_dump(mode="json", exclude=DIVISION), **made_with})
    say_corpus(config.corpus)
    shape = config.model_dump(mode="json", include={"shape", "cond_dim", "source", "objective", "vocab_size", "tokenizer"})
    return plan_of(TrainingJob("pretrain", partial(pretrain_at, half=half), config, out.absolute(), done, config.length, shape,
                               started_seconds()), wish)


def plan_fit_compass(config: CompassConfig, wish: PlanWish, out: Path, *, half: bool) -> Plan:
    """The plan of a compass or judge. Raises InputError where the run would; nothing is written."""
    check_tracker(config.tracker)
    check_writable(out)
    config = with_anchored_paths(config)
    check(config)
    teacher = load_denoiser(teacher_folder(config.teacher)).network.config
    done = updates_done(out, config.model_dump(mode="json", exclude={"teacher": True, **DIVISION}))
    say_corpus(config.corpus, [config.teacher])
    settings = {"shape", "kind", "rollouts", "rollout_steps", "rollout_clocks", "start", "init", "hard_negatives"}
    shape = {"teacher": teacher.model_dump(mode="json"), **config.model_dump(mode="json", include=settings)}
    return plan_of(TrainingJob("fit-compass", partial(fit_at, half=half), config, out.absolute(), done, teacher.length, shape,
                               started_seconds()), wish)
