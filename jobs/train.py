"""`pretrain` and `fit-compass`: train, show progress, save the model folder.

The training state and TensorBoard logs stand beside the model in OUT.training; a rerun resumes from there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsdfm.jobs.console import ticker
from tsdfm.pipeline import checkpoint
from tsdfm.pipeline.fit_compass import fit_ar, fit_nce
from tsdfm.pipeline.models import teacher_folder
from tsdfm.pipeline.pretrain import pretrain
from tsdfm.pipeline.training import Report
from tsdfm.schemas.base import InputError
from tsdfm.schemas.train import CompassConfig, OptimConfig, PretrainConfig


def train_teacher(config: PretrainConfig, out: Path, *, half: bool) -> dict[str, object]:
    """Train a denoiser into the folder `out`. Returns the facts of its training.json."""
    check_target(out)
    with _progress("pretrain", config.optim) as report:
        model, vocabulary, facts = pretrain(config, state_folder(out), report)
    facts = {"config": checkpoint.describe(config), **facts}
    checkpoint.save(out, model, vocabulary, facts, half=half)
    return facts


def train_compass(config: CompassConfig, out: Path, *, half: bool) -> dict[str, object]:
    """Fit a compass into the folder `out`. Returns the facts of its training.json."""
    check_target(out)
    teacher, opened = checkpoint.load_denoiser(teacher_folder(config.teacher, None))
    if config.kind == "ar":
        with _progress("fit-compass", config.optim) as report:
            fit = fit_ar(config, teacher, opened, state_folder(out), report)
    else:
        with ticker("rollouts", config.rollouts) as rollouts, _progress("fit-compass", config.optim) as report:
            fit = fit_nce(config, teacher, opened, state_folder(out), report, lambda done, total: rollouts.update(done))
    facts = {"config": checkpoint.describe(config), **fit.facts}
    checkpoint.save(out, fit.network, opened.vocabulary, facts, half=half)
    return facts


def state_folder(out: Path) -> Path:
    """Where the training state of the model in `out` lies."""
    return out.with_name(f"{out.name}.training")


def check_target(out: Path) -> None:
    """Refuse before hours of training what saving would refuse after them."""
    if out.exists() and not (out / checkpoint.CONFIG_FILE).is_file():
        raise InputError(f"{out}: exists and is not a model folder; give another --out")
    try:
        state_folder(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); give a folder you can write to") from None


@contextmanager
def _progress(label: str, optim: OptimConfig) -> Iterator[Report]:
    with ticker(label, optim.steps) as show:
        def report(step: int, scalars: dict[str, float]) -> None:
            show.update(step, f"loss {scalars['loss']:.4f}  lr {scalars['lr']:.1e}")
        yield report
