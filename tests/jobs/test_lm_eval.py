"""The lm-evaluation-harness with our models: its tasks run, what it is told is what the model says, and without it one line is said."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import assert_refused
from tsdfm.jobs import lm_eval as ours
from tsdfm.pipeline.evaluation.harness.prompted import Prompted, Wanted
from tsdfm.schemas.base import InputError
from tsdfm.schemas.lm_eval import HarnessConfig

ROOT = Path(__file__).parents[2]
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra 'lm-eval'")
TEXT = "the quick brown fox jumps over the lazy dog 7 energy compass keeps the most coherent jump 8 masks fall in turn"


@pytest.fixture
def prompted(tiny_models):
    return Prompted(HarnessConfig(model=str(tiny_models.mask), samples=16, steps=8))


def test_without_the_harness_one_line_says_what_to_install(cli, monkeypatch):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    assert_refused(cli("lm-eval", "run", "--tasks", "lambada_small"), "not installed", "tsdfm-pipeline[lm-eval]")


def test_a_continuation_is_spelled_as_in_a_text(prompted):
    """Blanks at the end of a context belong to the continuation; a context of none is the end of another text."""
    once = prompted.log_likelihood("the quick brown", " fox")
    assert prompted.log_likelihood("the quick brown ", "fox") == once
    assert once[0] < 0
    words = prompted.vocabulary
    given, tokens = prompted._divided("the quick brown ", "fox")
    assert given + tokens == words.encode(["the quick brown fox"])[0]
    assert prompted._divided("", "fox")[0] == [words.eos_id]
    assert prompted._divided("fo", "x")[1] == words.encode(["x"])[0]  # 'fox' is one token, or another division of the word
    with pytest.raises(InputError, match="no token"):
        prompted.log_likelihood("the quick", "")


def test_longer_texts_are_divided(prompted):
    """The likelihood of a text is the product over its pieces, of which each sees what stands before it."""
    long = " ".join([TEXT] * 3)
    assert len(prompted.vocabulary.encode([long])[0]) > 3 * prompted.network.config.length
    assert prompted.log_likelihood_of(long) < prompted.log_likelihood_of(TEXT) < prompted.log_likelihood_of("the quick") < 0
    assert prompted.log_likelihood_of("") == 0
    assert prompted.log_likelihood(long, " fox")[0] == prompted.log_likelihood(" ".join([TEXT] * 2), " fox")[0]  # beyond what fits


def test_texts_are_written_to_their_ends(prompted):
    """Up to the first string that ends one, to the end of the text, and no longer than wanted; the same for the same seed."""
    wanted = [Wanted("the quick brown", (), 4), Wanted(TEXT, (), 6), Wanted("", (" ",), 4), Wanted("the quick", (), 4, 0.5)]
    found = prompted.write(wanted)
    assert prompted.write(wanted) == found
    assert prompted.write([wanted[0]])[0] == found[0]
    assert " " not in found[2]
    shorter, longer = (prompted.write([Wanted("the quick", (), most)])[0] for most in (3, 6))
    assert longer.startswith(shorter.rstrip("\ufffd"))  # a token may be a part of a letter
    assert longer != shorter


def test_a_uniform_source_has_no_likelihood_but_writes(tiny_models):
    model = Prompted(HarnessConfig(model=str(tiny_models.uniform), steps=4))
    with pytest.raises(InputError, match="uniform source has no likelihood"):
        model.log_likelihood("the", " fox")
    assert len(model.write([Wanted("the quick", (), 4)])) == 1


@installed
def test_the_interface_answers_what_the_model_says(tiny_models, prompted):
    model = ours.harness_model()
    assert ours.harness_model() is model
    made = model.create_from_arg_string(f"model={tiny_models.mask},samples=16,steps=8", {"batch_size": 1, "max_batch_size": None, "device": "cpu"})

    def asked(*arguments):
        return [SimpleNamespace(args=arguments)]

    assert made.loglikelihood(asked("the quick", " brown fox")) == [prompted.log_likelihood("the quick", " brown fox")]
    assert made.loglikelihood_rolling(asked(TEXT)) == [prompted.log_likelihood_of(TEXT)]
    assert made.generate_until(asked("the quick", {"until": ["\n"], "max_gen_toks": 4, "temperature": 0.0})) == prompted.write(
        [Wanted("the quick", ("\n",), 4)])


@installed
def test_wrong_arguments_are_told_in_one_line(tmp_path):
    model = ours.harness_model()
    cases: list[tuple[dict[str, Any], str]] = [({"model": str(tmp_path / "none")}, "none"), ({"modle": "embedded"}, "--model_args: modle"), ({"samples": 0}, "samples")]
    for fields, words in cases:
        with pytest.raises(InputError, match=words):
            model(**fields)


@installed
@pytest.mark.slow
def test_the_command_runs_the_task_of_the_examples(tmp_path):
    """As the README has it, from the checkout, offline; twice the same figures, and better than a guess among all words."""
    command = [sys.executable, "-m", "tsdfm.jobs", "lm-eval", "run", "--tasks", "lambada_small", "--include_path", "tests/examples/lm_eval",
               "--model_args", "samples=32", "--output_path", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=offline(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "lambada_small" in done.stdout
    [file] = tmp_path.glob("out*.json")
    found = json.loads(file.read_text())["results"]["lambada_small"]
    model = Prompted(HarnessConfig(samples=32))
    texts = [json.loads(line)["text"] for line in (ROOT / "tests/examples/lm_eval/lambada_small.jsonl").read_text().splitlines()]
    scores = [model.log_likelihood(text.rpartition(" ")[0], " " + text.rpartition(" ")[2]) for text in texts]
    assert found["acc,none"] == sum(greedy for _, greedy in scores) / len(scores)
    assert found["perplexity,none"] == pytest.approx(math.exp(-sum(nats for nats, _ in scores) / len(scores)), rel=1e-6)
    assert found["perplexity,none"] < model.vocabulary.size


@installed
@pytest.mark.slow
def test_a_task_that_is_not_there_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "tsdfm.jobs", "lm-eval", "run", "--tasks", "no_such_task"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=offline(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("Error: lm-eval: ")


def offline(home):
    return os.environ | {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
