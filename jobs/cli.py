"""The command line: a table of commands, none of which is imported before it is asked for, and what exit codes mean."""

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from difflib import get_close_matches
from typing import Any

import click

from tsdfm.jobs.shell.console import LEVELS, logged, say, set_log_level
from tsdfm.jobs.shell.interrupts import Interrupted
from tsdfm.jobs.shell.leaving import left
from tsdfm.jobs.shell.signals import CODE, INTERRUPTED, STOPPING, interrupt, settled, unheeded, waiting
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.paths import is_text

# Group -> command -> (where it is, what it does in a few words)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Make trajectories": {
        "demo": ("tsdfm.jobs.demo.command:demo_command", "The whole story on what ships with the package"),
        "generate": ("tsdfm.jobs.generate.command:generate_command", "A dataset of trajectories, on Ray"),
    },
    "Look at them": {
        "verify": ("tsdfm.jobs.verify:verify_command", "Check every file and every row of a dataset"),
        "inspect": ("tsdfm.jobs.inspect.command:inspect_command", "Figures, texts forming, a page that plays them"),
        "sample": ("tsdfm.jobs.sample:sample_command", "Texts of a model"),
    },
    "Learn from them": {
        "distill": ("tsdfm.jobs.distill.command:distill_command", "A few-step student, from frozen datasets"),
        "pretrain": ("tsdfm.jobs.train.pretrain:pretrain_command", "A teacher, from your text"),
        "fit-compass": ("tsdfm.jobs.train.fit_compass:fit_compass_command", "A compass or a judge, from your text"),
        "import-teacher": ("tsdfm.jobs.import_teacher:import_command", "Another project's checkpoint as a teacher"),
    },
    "Judge": {
        "evaluate": ("tsdfm.jobs.evaluate.command:evaluate_command", "Perplexity, entropy, diversity and cost of models"),
        "ablate": ("tsdfm.jobs.ablate.command:ablate_command", "A sweep of students, in one table"),
        "lm-eval": ("tsdfm.jobs.lm_eval:lm_eval_command", "Tasks of the lm-evaluation-harness"),
    },
    "Share": {
        "publish": ("tsdfm.jobs.publish:publish_command", "A dataset or a student on the Hugging Face Hub"),
        "recipe": ("tsdfm.jobs.recipe:recipe_command", "Configs and scripts that ship, of the paper's size say"),
        "schema": ("tsdfm.jobs.schema:schema_command", "JSON Schema of a command's config, for editors"),
    },
}
PLACES = {name: place for group in COMMANDS.values() for name, (place, _) in group.items()}


def _heard(context: click.Context, parameter: click.Parameter, level: str | None) -> None:
    if level is not None:
        set_log_level(level)


LOG_LEVEL = click.Option(["--log-level"], type=click.Choice(list(LEVELS)), expose_value=False, is_eager=True, callback=_heard,
                         help=(
    "What is written to standard error: 'error' the line that ends a run, 'warning' what may be amiss as well, 'info' also "
    "progress and remarks, 'debug' also what libraries tell, and the traceback of an error.  [default: info]"))


class Commands(click.Group):
    """A group of the commands in COMMANDS, each of which is imported only when it runs."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(PLACES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name, imported now; None if there is no such command."""
        if name not in PLACES:
            return None
        module, _, attribute = PLACES[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if LOG_LEVEL not in command.params:  # it is taken before and after the name of a command
            command.params.append(LOG_LEVEL)
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for; of a name that is none, the nearest one is told."""
        if args[0] not in PLACES and (near := get_close_matches(args[0], PLACES, n=1)):
            raise click.UsageError(f"No such command {args[0]!r}. (Did you mean {near[0]!r}?)", context)
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        """Run the command. An interrupt is told in one line; click would put an empty one before it."""
        try:
            if waiting():
                raise KeyboardInterrupt
            return super().invoke(context)
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)  # after the ^C that the terminal shows
            raise Interrupted(INTERRUPTED) from None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands in the help, group by group, with nothing imported."""
        for group, commands in COMMANDS.items():
            with formatter.section(group):
                formatter.write_dl([(name, short) for name, (_, short) in commands.items()])


@click.group(cls=Commands, params=[LOG_LEVEL], context_settings={"help_option_names": ["-h", "--help"]},
             invoke_without_command=True, epilog=(
    "Exit codes: 0 done; 1 the work or the data is at fault (what is finished is kept); 2 the input is wrong, in one line that "
    "says what, where and how to mend it; 130 interrupted. `COMMAND --help` tells a command's options."))
@click.version_option(package_name="tsdfm-pipeline")
@click.pass_context
def cli(context: click.Context) -> None:
    """Trajectory-shaped discrete flow matching: generate trajectories, distil few-step students, evaluate them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Entry point: exit codes as in the help; one line, never a traceback."""
    # Threads that wait must not spin: beside other work, two that do are many times slower than one. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A closed terminal, Slurm and Kubernetes ask to stop as Ctrl-C does.
    threads, threading.excepthook = threading.excepthook, _thread_fault
    former = {number: signal.signal(number, interrupt) for number in STOPPING}
    try:
        with logged():
            try:
                _run()
            finally:
                for number in STOPPING:  # the command is done: what comes now comes too late to stop anything
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:  # before the command itself had begun
        _fail(INTERRUPTED, CODE)
    finally:
        settled()
        threading.excepthook = threads
        for number, handler in former.items():
            if handler not in (interrupt, None):  # what the process began with: then it is over, and what comes stays unheard
                signal.signal(number, handler)
        left(sys.exc_info()[1])


def _run() -> None:
    try:
        for argument in sys.argv[1:]:
            if not is_text(argument):
                raise InputError(f"{argument!r}: is not UTF-8, so no record could hold it; write it in UTF-8, or "
                                 "link a file of such a name")
        cli.main(prog_name="tsdfm-pipeline", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail(INTERRUPTED, CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        say("".join(traceback.format_exception(error)).rstrip(), logging.DEBUG)
        _fail(*((INTERRUPTED, CODE) if unheeded() else _told(error)))


def _thread_fault(fault: threading.ExceptHookArgs) -> None:
    """Say in one line what ended a thread of a library, the writer of a log say; what depends on it finds out by itself."""
    if isinstance(fault.exc_value, Exception):
        say(f"Warning: in the background: {_told(fault.exc_value)[0]}", logging.WARNING)


def _told(error: Exception) -> tuple[str, int]:
    """What an error says in one line, and the exit code. Raises it if it is a defect and TSDFM_TRACEBACK is set."""
    if isinstance(error, click.ClickException):
        return _refused(error), 2
    if isinstance(error, InputError | WorkError):
        return str(error), 2 if isinstance(error, InputError) else CODE if isinstance(error, Interrupted) else 1
    if isinstance(error, MemoryError):
        return "out of memory; what is finished is kept; give this more memory, or lower a batch size", 1
    if isinstance(error, OSError):  # of the machine, not of the program: a disk that fails, a file that is gone
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or first_line(error)}; what is finished is kept; mend that, the same command goes on", 1
    if os.environ.get("TSDFM_TRACEBACK"):
        raise error
    return (f"unexpected {type(error).__name__}: {first_line(error, 300)}; this is a defect, please report it "
            "(TSDFM_TRACEBACK=1 shows where)"), 1


def _refused(error: click.ClickException) -> str:
    """Click's own words of a command line that it refused, and where to read what there is, where they don't say it."""
    said = error.format_message().replace("\n", " ")
    of_a_value = isinstance(error, click.BadOptionUsage | click.BadParameter) and not isinstance(error, click.MissingParameter)
    if not isinstance(error, click.UsageError) or of_a_value or "Did you mean" in said:
        return said
    asked = error.ctx.command_path if error.ctx else "tsdfm-pipeline"
    return f"{said.rstrip('.')}; `{asked} --help` tells what there is"


def _fail(message: str, code: int) -> None:
    say(f"Error: {message}", logging.ERROR)
    sys.exit(code)
