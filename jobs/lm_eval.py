"""The command `tsdfm-pipeline lm-eval`: the lm-evaluation-harness, its own command line, with our models among its models."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import click

from tsdfm.pipeline.evaluation.harness.prompted import Prompted, Wanted
from tsdfm.schemas.base import InputError, WorkError, first_line, parse
from tsdfm.schemas.lm_eval import HarnessConfig

NAME = "tsdfm"  # of our models, as `--model` of the harness takes it


@click.command("lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": []}, short_help=(
    "Tasks of the lm-evaluation-harness"))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def lm_eval_command(context: click.Context, arguments: Sequence[str]) -> None:
    """Run the lm-evaluation-harness (extra 'lm-eval'): ARGUMENTS are its own, and --model is tsdfm unless they say otherwise.

    tsdfm-pipeline lm-eval run --tasks TASK --model_args model=STUDENT,samples=128

    `lm-eval run --help` lists its options, `lm-eval ls tasks` its tasks.
    """
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        click.echo(context.get_help())
        return
    harness_model()
    if words[:1] == ["run"] and not {"--model", "-M", "--config", "-C"} & {word.partition("=")[0] for word in words}:
        words += ["--model", NAME]
    with _named(words), _explained():
        importlib.import_module("lm_eval.__main__").cli_evaluate()


@contextlib.contextmanager
def _named(words: list[str]) -> Iterator[None]:
    """The arguments of this process, as the harness reads them."""
    before, sys.argv = sys.argv, ["lm-eval", *words]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the harness raises, in one line: wrong names of tasks and fields are the user's to mend."""
    try:
        yield
    except (InputError, WorkError):
        raise
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(f"lm-eval: {first_line(error, 300)}; mend the arguments, 'tsdfm-pipeline lm-eval run --help' lists "
                         "them") from error
    except Exception as error:
        raise WorkError(f"lm-eval: {type(error).__name__}: {first_line(error, 300)}; mend that and run it again") from error


class _Answers:
    """How our models answer the harness: all of its interface but what its own class brings."""

    cache_hook: Any  # of the harness's class

    def __init__(self, *, max_batch_size: int | None = None, device: str | None = None, **fields: Any) -> None:
        """`device` and `max_batch_size` are the harness's own, and of no use here; so is its default of `batch_size`."""
        super().__init__()
        if fields.get("batch_size") in (1, "1", "auto"):
            del fields["batch_size"]
        self.prompted = Prompted(parse(HarnessConfig, fields, "--model_args"))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the bound on its log-probability in nats, and whether it is the greedy one."""
        return self._each("loglikelihood", self.prompted.log_likelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each text: the bound on its log-probability, in nats."""
        return self._each("loglikelihood_rolling", self.prompted.log_likelihood_of, requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Of each (context, settings): a sampled continuation, up to the first of the strings `until`."""
        return self.prompted.write([_wanted(*request.args) for request in requests])

    def _each(self, kind: str, answer: Callable[..., Any], requests: list[Any], quiet: bool) -> list[Any]:
        from tqdm import tqdm  # type: ignore[import-untyped]

        found = []
        for request in tqdm(requests, disable=quiet, desc=kind):
            found.append(answer(*request.args))
            self.cache_hook.add_partial(kind, request.args, found[-1])  # so that a run that is cut goes on, with --use_cache
        return found


def _wanted(context: str, settings: dict[str, Any]) -> Wanted:
    until = settings.get("until") or ()
    return Wanted(context, (until,) if isinstance(until, str) else tuple(until), settings.get("max_gen_toks"),
                  settings.get("temperature") or None)


def harness_model() -> type[Any]:
    """The harness's interface to our models, entered in its register as `tsdfm`: likelihoods, and continuations.

    Its arguments are the fields of `HarnessConfig`. Raises InputError if the harness isn't installed.
    """
    if find_spec("lm_eval") is None:
        raise InputError("lm-eval: the lm-evaluation-harness is not installed; run pip install 'tsdfm-pipeline[lm-eval]'")
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=type("HarnessModel", (_Answers, LM), {"__doc__": _Answers.__doc__}))
    found: type[Any] = model_registry.get(NAME)
    return found
