"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from tsdfm.jobs.ablate_command import ablate_command
from tsdfm.jobs.console import emit, people
from tsdfm.jobs.distill_command import distill_command
from tsdfm.jobs.evaluate_command import evaluate_command
from tsdfm.jobs.import_command import import_command
from tsdfm.jobs.inspect import inspect_command
from tsdfm.jobs.publish_command import publish_command
from tsdfm.schemas.base import InputError, WorkError

_CONFIG = click.argument("config", required=False, type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="tsdfm-pipeline")
@click.pass_context
def cli(context: click.Context) -> None:
    """Trajectory-shaped discrete flow matching: generate trajectories, distil few-step students, evaluate them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@_CONFIG
@click.option("--out", help="Folder or filesystem URI of the dataset.")
@click.option("--trajectories", type=int, help="Number of trajectory ids.  [256]")
@click.option("--teacher", help="'embedded', or the folder of a denoiser.")
@click.option("--source", type=click.Choice(["mask", "uniform"]), help="Which embedded teacher.  [mask]")
@click.option("--compass", help="'embedded', 'none', 'denoiser', or a folder.")
@click.option("--arm", type=click.Choice(["shaped", "blind", "both"]), help="[shaped]")
@click.option("--steps", type=int, help="Steps N of the time grid.  [64]")
@click.option("--length", type=int, help="Sequence length L in tokens.  [the teacher's]")
@click.option("--temperature", type=float, help="Divides the teacher's logits.  [1.0]")
@click.option("--solver", type=click.Choice(["euler", "rk4", "rk4_chained"]), help="[euler]")
@click.option("--candidates", type=int, help="K candidates per shaped step.  [8]")
@click.option("--tau", type=float, help="Shape steps that start at t >= tau.  [0.0]")
@click.option("--shape-every", type=int, help="Shape every so many steps.  [1]")
@click.option("--select", type=click.Choice(["argmin", "resample"]), help="[argmin]")
@click.option("--beta", type=float, help="Inverse temperature of 'resample'.  [1.0]")
@click.option("--form", type=click.Choice(["plain", "residual"]), help="Form of the energy.")
@click.option("--top-k", type=int, help="Keep the teacher's top-k posterior per event.  [0]")
@click.option("--seed", type=int, help="Seed of all noise.  [0]")
@click.option("--shard-size", type=int, help="Trajectory ids per shard.  [64]")
@click.option("--batch-size", type=int, help="Trajectories rolled out together.  [32]")
@click.option("--threads", type=int, help="CPU threads of a worker.  [1]")
@click.option("--workers", type=int, help="Ray actors.  [one per core or GPU]")
@click.option("--address", help="'local', 'auto', 'host:port' or 'ray://host:port'.  [local]")
@_JSON
def generate(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Roll a teacher out on Ray, shape it, and freeze the trajectories in OUT; run again to resume."""
    from tsdfm.jobs.generate import generate as run
    from tsdfm.jobs.options import build
    from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig

    paths = {name: _field(name, rollout=RolloutConfig, shaping=ShapingConfig) for name in flags}
    settings = build(GenerateConfig, config, {paths[name]: value for name, value in flags.items()})
    with redirect_stdout(sys.stderr):  # Ray prints some warnings to standard output, which is for JSON alone
        report = run(settings)
    people.print(f"{report['out']}: {report['rows']} trajectories in {report['shards']} shards ({report['made']} made, "
                 f"{report['kept']} kept), {report['bytes']:,} bytes, {report['seconds']} s", markup=False)
    if as_json:
        emit(report)


def _field(name: str, **groups: Any) -> str:
    """The dotted path of a flag's field: that of the nested config which has it, else the top's."""
    for group, model in groups.items():
        if name in model.model_fields:
            return f"{group}.{name}"
    return name


@cli.command()
@click.argument("out")
@_JSON
def verify(out: str, as_json: bool) -> None:
    """Check every file and every row of the dataset in OUT; exit code 2 if anything is wrong."""
    from tsdfm.jobs.console import ticker
    from tsdfm.pipeline.storage import Store
    from tsdfm.pipeline.verify import verify as run

    with ticker("shards", 1) as show:
        def progress(done: int, total: int) -> None:
            show.total = total
            show.update(done)
        manifest, faults = run(Store(out), progress)
    for fault in faults:
        people.print(f"{out}/{fault}", markup=False)
    if as_json:
        emit({"out": out, "sound": not faults, "rows": manifest.totals.rows, "shards": len(manifest.shards),
              "faults": [{"path": f.path, "row": f.row, "what": f.what} for f in faults]})
    if faults:
        raise InputError(f"{out}: {len(faults)} faults; restore the files named above, or run generate again to remake them")
    people.print(f"{out}: sound: {manifest.totals.rows} trajectories in {len(manifest.shards)} shards", markup=False)


cli.add_command(inspect_command, "inspect")
cli.add_command(ablate_command, "ablate")
cli.add_command(distill_command, "distill")
cli.add_command(evaluate_command, "evaluate")
cli.add_command(import_command, "import-teacher")
cli.add_command(publish_command, "publish")


@cli.command()
@click.option("--model", default="embedded", show_default=True, help="'embedded', or the folder of a denoiser.")
@click.option("--source", type=click.Choice(["mask", "uniform"]), help="Which embedded model.  [mask]")
@click.option("--steps", default=64, show_default=True, type=int, help="Steps N.")
@click.option("-n", "--number", default=4, show_default=True, type=click.IntRange(1), help="How many texts.")
@click.option("--length", type=int, help="Tokens per text.  [the model's]")
@click.option("--temperature", default=1.0, show_default=True, type=float, help="Divides the logits.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of all noise.")
@_JSON
def sample(model: str, source: Any, number: int, as_json: bool, **flags: Any) -> None:
    """Write texts with a model, one jump after another (no compass: what inference costs)."""
    from tsdfm.jobs.options import build
    from tsdfm.jobs.sample import sample as run
    from tsdfm.schemas.generate import RolloutConfig

    texts = run(model, source, build(RolloutConfig, None, flags), number)
    if as_json:
        emit({"model": model, "texts": texts})
        return
    for text in texts:
        click.echo(text.replace("\n", "\n  ") + "\n")


@cli.command()
@_CONFIG
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the teacher.")
@click.option("--corpus", help="'python', a file, a folder, or hub:NAME[:SPLIT].")
@click.option("--source", type=click.Choice(["mask", "uniform"]), help="[mask]")
@click.option("--length", type=int, help="Sequence length in tokens.  [64]")
@click.option("--steps", type=int, help="Number of updates.  [2000]")
@click.option("--threads", type=int, help="CPU threads.  [1]")
@click.option("--seed", type=int, help="Seed of weights, batches and noise.  [0]")
@click.option("--half", is_flag=True, help="Store float16 weights.")
@_JSON
def pretrain(config: Path | None, out: Path, half: bool, as_json: bool, **flags: Any) -> None:
    """Train a teacher from text; run again to resume."""
    from tsdfm.jobs.options import build
    from tsdfm.jobs.train import train_teacher
    from tsdfm.schemas.train import PretrainConfig

    paths = {"corpus": "corpus.path", "steps": "optim.steps", "threads": "optim.threads", "seed": "optim.seed"}
    settings = build(PretrainConfig, config, {paths.get(name, name): value for name, value in flags.items()})
    _trained(train_teacher(settings, out, half=half), out, as_json)


@cli.command("fit-compass")
@_CONFIG
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the compass.")
@click.option("--teacher", help="'embedded', or the folder of a denoiser.")
@click.option("--corpus", help="'python', a file, a folder, or hub:NAME[:SPLIT].")
@click.option("--kind", type=click.Choice(["ar", "nce"]), help="[ar]")
@click.option("--part", type=click.Choice(["first", "second"]), help="Half of the corpus.  [first]")
@click.option("--steps", type=int, help="Number of updates.  [2000]")
@click.option("--threads", type=int, help="CPU threads.  [1]")
@click.option("--seed", type=int, help="Seed of weights, batches and noise.  [0]")
@click.option("--half", is_flag=True, help="Store float16 weights.")
@_JSON
def fit_compass(config: Path | None, out: Path, half: bool, as_json: bool, **flags: Any) -> None:
    """Fit a compass (or, on the other half of the corpus, a judge) and say how well it separates; run again to resume."""
    from tsdfm.jobs.options import build
    from tsdfm.jobs.train import train_compass
    from tsdfm.schemas.train import CompassConfig

    paths = {"corpus": "corpus.path", "part": "corpus.part", "steps": "optim.steps", "threads": "optim.threads",
             "seed": "optim.seed"}
    settings = build(CompassConfig, config, {paths.get(name, name): value for name, value in flags.items()})
    _trained(train_compass(settings, out, half=half), out, as_json)


def _trained(facts: dict[str, object], out: Path, as_json: bool) -> None:
    scores = {name: value for name, value in facts.items() if name.startswith("held_out")}
    people.print(f"{out}: trained; {scores}", markup=False)
    if as_json:
        emit({"out": str(out), **facts})


@cli.command()
@click.option("--out", default="out/demo", show_default=True, help="Folder of all that the demo makes.")
@click.option("--trajectories", default=640, show_default=True, type=click.IntRange(2), help="Pairs of trajectories.")
@click.option("--updates", default=500, show_default=True, type=click.IntRange(1), help="Updates of each student.")
@click.option("--samples", default=256, show_default=True, type=click.IntRange(2), help="Texts per row of the evaluation.")
@_JSON
def demo(out: str, trajectories: int, updates: int, samples: int, as_json: bool) -> None:
    """The whole story on embedded defaults: trajectories shaped and blind, a student of each, and a page of results."""
    from tsdfm.jobs.demo import demo as run

    with redirect_stdout(sys.stderr):
        report = run(out, trajectories, updates, samples)
    if as_json:
        emit(report)


def main() -> None:
    """Entry point: exit code 0 done, 1 the work failed, 2 the input is wrong; one line, never a traceback."""
    try:
        cli.main(prog_name="tsdfm-pipeline", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        _fail(error.format_message().replace("\n", " "), 2)
    except InputError as error:
        _fail(str(error), 2)
    except WorkError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; finished work is kept, the same command goes on with it", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("TSDFM_TRACEBACK"):
            raise
        _fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}; this is a defect, please report it "
              "(TSDFM_TRACEBACK=1 shows where)", 1)


def _fail(message: str, code: int) -> None:
    people.print(f"Error: {message}", markup=False)
    sys.exit(code)
