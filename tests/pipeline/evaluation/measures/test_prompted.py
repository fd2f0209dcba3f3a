"""Texts that go on from prompts: every figure is of what stands after them, and real continuations are measured by the same rule."""

import json

import numpy as np
import pytest
import torch

from tests.support import LENGTH, assert_refused, present
from tsdfm.pipeline.evaluation.cells import make_cell
from tsdfm.pipeline.evaluation.measures.prompted import beginnings, read_prompts
from tsdfm.pipeline.evaluation.run import evaluate
from tsdfm.pipeline.evaluation.sample_cache import kept_texts
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load, load_model
from tsdfm.pipeline.text.corpus import held_out_stream, windows_of
from tsdfm.pipeline.text.metrics import distinct_n, self_bleu, unigram_entropy
from tsdfm.schemas.evaluate import EvaluateConfig

TEXTS = ["the quick", "masks fall in", "energy"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(f"the quick brown fox {i} jumps over the lazy dog, masks fall in turn {7 * i}" for i in range(2000)))
    return path


@pytest.fixture
def settings(tmp_path, tiny_models, corpus):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return {"model": str(tiny_models.mask), "evaluator": str(tiny_models.ar), "steps": 4, "samples": 8, "batch_size": 3,
            "corpus": {"path": str(corpus)}, "out": str(tmp_path / "out")}


@pytest.fixture(scope="module")
def direct(tiny_models):
    """Nats of the tokens of a text after the first so many, from all logits."""
    network = load(tiny_models.ar).network

    def nats(tokens, first):
        ids = torch.as_tensor(np.asarray(tokens))[None]
        return -float(network(ids).double().log_softmax(-1).gather(-1, ids[..., None])[0, first:].sum())
    return nats


def assert_figures(row, tokens, sizes, direct, judge):
    """All figures of a row, of what stands after the first `sizes` tokens of each text."""
    written = [text[size:] for text, size in zip(tokens, sizes, strict=True)]
    assert row.given == pytest.approx(np.mean(sizes))
    assert row.entropy_bits == pytest.approx(np.mean([unigram_entropy(text) for text in written]))
    assert (row.distinct_2, row.distinct_4) == (distinct_n(written, 2), distinct_n(written, 4))
    assert row.self_bleu == self_bleu([np.array(text) for text in written])
    nats = sum(direct(text, size) for text, size in zip(tokens, sizes, strict=True))
    assert row.judges[judge].tokens == sum(map(len, written))
    assert row.judges[judge].perplexity == pytest.approx(np.exp(nats / sum(map(len, written))), rel=1e-4)


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_texts_after_the_prompts_of_a_file(tmp_path, tiny_models, settings, direct, source):
    """Text r goes on from prompt r mod P, and there is no real text: how people went on is not known."""
    config = EvaluateConfig.model_validate(settings | {"model": str(getattr(tiny_models, source)), "prompts": str(tmp_path / "prompts.txt")})
    results = evaluate(config)
    assert (results.reference, config.reads_corpus) == ([], False)
    [row] = results.rows
    samples, _ = kept_texts(results, row, tmp_path / "out")
    words = load_model(str(tiny_models.mask)).vocabulary
    wanted = [words.encode([TEXTS[r % 3]])[0] for r in range(8)]
    for tokens, text, given in zip(samples.tokens.tolist(), samples.texts, wanted, strict=True):
        assert tokens[: len(given)] == given
        assert text.startswith(words.decode(given))
    assert len({tuple(tokens) for tokens in samples.tokens.tolist()}) == 8
    assert_figures(row, samples.tokens.tolist(), list(map(len, wanted)), direct, str(tiny_models.ar))
    assert (row.memorised, present(row.tokens_per_second) > 0) == (None, True)


def test_held_out_beginnings_and_how_they_really_go_on(tmp_path, tiny_models, settings, corpus, direct):
    config = EvaluateConfig.model_validate(settings | {"prompt_tokens": 5, "distances": True, "samples": 16})
    results = evaluate(config)
    [real], [row] = results.reference, results.rows
    words = load_model(str(tiny_models.mask)).vocabulary
    windows = windows_of(held_out_stream(config.corpus, words), LENGTH, 16).tolist()
    samples, _ = kept_texts(results, row, tmp_path / "out")
    assert [text[:5] for text in samples.tokens.tolist()] == [text[:5] for text in windows]
    assert_figures(real, windows, [5] * 16, direct, str(tiny_models.ar))
    assert_figures(row, samples.tokens.tolist(), [5] * 16, direct, str(tiny_models.ar))
    assert present(real.memorised) > present(row.memorised)
    assert set(row.distances) == set(real.distances) == {str(tiny_models.ar)}


def test_a_rerun_takes_what_was_made_of_the_same_prompts_alone(tmp_path, tiny_models, settings, monkeypatch):
    """Other prompts, and none, have texts of their own in the folder; what the results say is read back."""
    first = evaluate(EvaluateConfig.model_validate(settings | {"prompts": str(tmp_path / "prompts.txt")}))
    plain = evaluate(EvaluateConfig.model_validate(settings))
    (tmp_path / "others.txt").write_text("\n".join(reversed(TEXTS)))
    other = evaluate(EvaluateConfig.model_validate(settings | {"prompts": str(tmp_path / "others.txt")}))
    assert len({row.judges[str(tiny_models.ar)].perplexity for results in (first, plain, other) for row in results.rows}) == 3
    assert [name for name in ("given", "prompts") if name in plain.model_dump_json()] == []
    assert type(first).model_validate_json(first.model_dump_json()) == first
    monkeypatch.setattr(Denoiser, "hidden", None)  # nothing is sampled again
    again = evaluate(EvaluateConfig.model_validate(settings | {"prompts": str(tmp_path / "prompts.txt")}))
    assert again.rows == first.rows
    file = json.loads((tmp_path / "out" / "results.json").read_text())
    assert file["rows"][0]["given"] == first.rows[0].given


def test_workers_get_the_prompts_and_not_the_name_of_a_file(tmp_path, tiny_models, settings):
    """A cell that is made where there is no such file has the same texts."""
    class Elsewhere:
        def make(self, cells, take):
            for index, cell in enumerate(cells):
                assert cell.patterns.shape == (3, LENGTH)
                take(index, make_cell(cell))

    config = EvaluateConfig.model_validate(settings | {"prompts": str(tmp_path / "prompts.txt")})
    here = evaluate(config.model_copy(update={"out": None}))
    there = evaluate(config, maker=Elsewhere())
    assert there.rows[0].judges == here.rows[0].judges


def test_a_length_that_is_asked_for_is_that_of_prompts_and_their_texts(settings, tmp_path):
    config = EvaluateConfig.model_validate(settings | {"prompts": str(tmp_path / "prompts.txt"), "length": LENGTH - 4})
    opened = load_model(config.model[0])
    found = present(beginnings(config, read_prompts(config), opened))
    assert found.patterns.shape == (3, LENGTH - 4)
    assert evaluate(config).rows[0].length == LENGTH - 4


def test_prompts_that_cannot_be(cli, tiny_models, tmp_path, corpus, monkeypatch):
    """One line each, before anything is sampled or judged."""
    monkeypatch.setattr(Denoiser, "hidden", None)

    def refused(*flags, words, text=None):
        if text is not None:
            (tmp_path / "p.txt").write_text(text)
        outcome = cli("evaluate", "--model", tiny_models.mask, "--evaluator", tiny_models.ar, "--steps", 2, "-n", 4, "--corpus", corpus, *flags)
        assert_refused(outcome, *words)

    file = ("--prompts", tmp_path / "p.txt")
    refused(*file, "--prompt-tokens", 3, words=["prompts and prompt_tokens: give only one"], text="the\n")
    refused(*file, "--naive", words=["naive: these samplers go on from no prompt"])
    refused(*file, "--distances", words=["distances are from real text", "--prompt-tokens"])
    refused(*file, "--likelihood", "--no-sampling", words=["prompts: are what sampled texts go on from"])
    refused(*file, words=["p.txt: prompt 2: has", f"a text of the model {LENGTH}", "shorten it"], text="the\n" + "the quick brown fox jumps " * 3 + "\n")
    refused(*file, words=["p.txt: prompt 1: has", "of a text of 16, and at least 4 after it are measured"], text="ZQZQZQZQZQZQZ\n")
    refused(*file, words=["p.txt: holds no prompt"], text="\n\n")
    refused("--prompts", tmp_path / "none.txt", words=["none.txt: cannot be read"])
    refused("--prompt-tokens", LENGTH - 3, words=[f"prompt_tokens: {LENGTH - 3} leave 3 to write of a text of {LENGTH}", f"give up to {LENGTH - 4}"])
    refused("--prompt-tokens", 0, words=["prompt_tokens"])
