"""Texts that end, from text to a student, as a user meets them; texts in blocks; figures are those of the texts cut by hand."""

import json
import math

import numpy as np
import pytest
import torch
import yaml

from tests.support import (
    SHAPE,
    assert_refused,
    copy_dataset,
    denoiser_config,
    make_dataset,
    present,
    scatter_weights,
    vocabulary,
)
from tsdfm.pipeline import batches, open_dataset, replay
from tsdfm.pipeline.dataset.manifest import read_shard
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.sample_cache import SampleCache
from tsdfm.pipeline.evaluation.samples import measure, of_tokens
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load_denoiser, save
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.text.metrics import distinct_n, self_bleu, unigram_entropy
from tsdfm.pipeline.training.distill import distill
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import Results
from tsdfm.schemas.model import CausalConfig

LENGTH = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of one to four short sentences, so that their lengths differ."""
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    sentences = ["the fox runs.", "a dog sleeps.", "it is late now.", "they go home."]
    path.write_text("\n\n".join(" ".join([sentences[(i + j) % 4] for j in range(1 + i % 4)] + [str(i)]) for i in range(1200)))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, corpus):
    """A teacher of padded texts, by the command's own config."""
    from pathlib import Path

    from tsdfm.pipeline.training.pretrain import pretrain
    from tsdfm.schemas.train import PretrainConfig

    root = tmp_path_factory.mktemp("padded")
    optim = {"steps": 150, "batch_size": 32, "warmup": 5, "lr": 5e-3, "ema": 0.9}
    config = PretrainConfig.model_validate({"corpus": {"path": str(corpus)}, "vocab_size": 300, "length": LENGTH, "shape": SHAPE,
                                            "cond_dim": 16, "optim": optim, "texts": "padded"})
    made = present(pretrain(config, Path(root / "state"), lambda *_: False))
    save(root / "teacher", made.network, made.vocabulary, made.record)
    return root / "teacher"


@pytest.fixture(scope="module")
def reader(tmp_path_factory, teacher):
    """A causal model of the teacher's vocabulary, with random weights: a compass and a judge; `nats`: of a text's tokens [n]."""
    words = load_denoiser(teacher).vocabulary
    network = CausalLM(CausalConfig(**SHAPE, vocab_size=words.size - 1, length=LENGTH))
    scatter_weights(network, 5)
    folder = tmp_path_factory.mktemp("reader") / "reader"
    save(folder, network, words, None)

    @torch.no_grad()
    def nats(tokens):
        ids = torch.as_tensor(tokens)[None]
        return -network(ids).double().log_softmax(-1).gather(-1, ids[..., None])[0, :, 0].numpy()
    return folder, nats


def cut_of(tokens, end, given):
    """The tokens of a text up to its end, that included, which counts behind what was given."""
    tokens = list(tokens)
    return tokens[: tokens.index(end, given) + 1] if end in tokens[given:] else tokens


def report_of(cli, *arguments):
    done = cli(*arguments, "--json")
    assert done.code == 0, done.stderr
    return json.loads(done.stdout), done


def test_a_model_of_padded_texts_says_so_and_writes_to_the_end(cli, teacher):
    opened = load_denoiser(teacher)
    end = opened.vocabulary.eos_id
    assert (opened.network.config.end_id, opened.network.config.texts) == (end, "padded")
    report, done = report_of(cli, "sample", "--model", teacher, "--steps", 16, "-n", 40, "--clocks", "spaced")
    assert len(set(report["tokens"])) > 1
    assert 5 < sum(report["ended"]) < 40
    assert f"{sum(report['ended'])} of 40 texts ended" in done.stderr
    raw, done = report_of(cli, "sample", "--model", teacher, "--steps", 16, "-n", 40, "--clocks", "spaced", "--until", "length")
    assert raw["ended"] is None
    assert raw["tokens"] == [LENGTH] * 40
    for text, whole, size, ended in zip(report["texts"], raw["texts"], report["tokens"], report["ended"], strict=True):
        assert whole.startswith(text + "\n") if ended else whole == text
        assert size == LENGTH or ended
    prompted, _ = report_of(cli, "sample", "--model", teacher, "--steps", 16, "-n", 10, "--prompt", "the fox")
    assert [each["written"] for each in prompted["prompted"]] == [[text.removeprefix("the fox")] for text in prompted["texts"]]


def test_a_packed_model_stops_where_it_is_told_to(cli, tiny_models, tmp_path):
    words = vocabulary()
    network = Denoiser(denoiser_config("mask", words))
    scatter_weights(network, 3)
    with torch.no_grad():
        network.head.weight.mul_(0.1)
        network.head.bias.zero_()[words.eos_id] = 2.5
    save(tmp_path / "m", network, words, None)
    arguments = ["sample", "--model", tmp_path / "m", "--steps", 4, "-n", 30]
    whole, _ = report_of(cli, *arguments)
    cut, _ = report_of(cli, *arguments, "--until", "end")
    assert (whole["ended"], set(whole["tokens"])) == (None, {LENGTH})
    assert 0 < sum(cut["ended"]) < 31
    assert any(text != other and text.startswith(other) for text, other in zip(whole["texts"], cut["texts"], strict=True))
    long, _ = report_of(cli, *arguments, "--until", "end", "--length", 30, "--overlap", 5)
    for short, text, ended in zip(cut["texts"], long["texts"], cut["ended"], strict=True):
        assert text == short if ended else text.startswith(short[:-3])  # a character may be cut


def test_texts_of_any_length(cli, tiny_models):
    arguments = ["sample", "--model", tiny_models.uniform, "--steps", 4, "-n", 3]
    report, _ = report_of(cli, *arguments, "--length", 40)
    assert report["tokens"] == [40] * 3
    assert report == report_of(cli, *arguments, "--length", 40, "--overlap", 8)[0]
    assert report != report_of(cli, *arguments, "--length", 40, "--overlap", 9)[0]
    long = "the quick brown fox jumps over the lazy dog the quick brown fox"
    words = load_denoiser(tiny_models.uniform).vocabulary
    assert len(words.encode([long])[0]) > LENGTH
    prompted, _ = report_of(cli, *arguments, "--length", 60, "--prompt", long)
    assert all(text.startswith(long) for text in prompted["texts"])


def test_evaluate_measures_what_was_written(cli, teacher, corpus, tmp_path, tiny_models):
    """Figures of a row, and of real text, are those of the texts cut by hand; lengths stand beside them."""
    report, done = report_of(cli, "evaluate", "--model", teacher, "--steps", "4,16", "--evaluator", tiny_models.ar, "-n", 20, "--corpus",
                             corpus, "--out", tmp_path / "out", "--naive", "--threads", 1)
    results = Results.model_validate(report)
    assert "length, ended" in done.stderr or "length, ended" in done.stdout or done.stdout.startswith("{")
    cache = SampleCache(tmp_path / "out")
    found = {}
    for path in (tmp_path / "out" / "samples").iterdir():
        import pyarrow.parquet as pq
        found[json.loads(pq.read_table(path).schema.metadata[b"tsdfm"])["identity"].get("steps")] = pq.read_table(path)
    assert cache.folder.is_dir()
    opened = load_denoiser(teacher)
    end = opened.vocabulary.eos_id
    judge = open_judge(str(tiny_models.ar), torch.device("cpu"))
    for row in results.rows:
        tokens = [list(each) for each in found[row.steps]["tokens"].to_pylist()]
        cut = [text[: text.index(end, 1) + 1] if end in text[1:] else text for text in tokens]
        assert row.mean_length == np.mean([len(text) for text in cut])
        assert row.ended == np.mean([end in text[1:] for text in tokens])
        assert row.length == LENGTH
        assert row.texts == "padded"
        entropy = [float(unigram_entropy(text)) for text in cut]
        assert row.entropy_bits == pytest.approx(np.mean(entropy))
        assert row.entropy_standard_error == pytest.approx(np.std(entropy, ddof=1) / math.sqrt(20))
        assert (row.distinct_2, row.distinct_4) == (distinct_n(cut, 2), distinct_n(cut, 4))
        shown = [opened.vocabulary.decode(text[:-1] if text[-1] == end and len(text) > 1 else text) for text in cut]
        assert found[row.steps]["text"].to_pylist() == shown
        likelihood = judge.score(cut, shown, opened.vocabulary.fingerprint)
        judged = row.judges[str(tiny_models.ar)]
        assert (judged.perplexity, judged.tokens) == (likelihood.perplexity, likelihood.tokens.sum())
    assert min(present(row.ended) for row in results.rows) > 0
    real = results.reference[0]
    assert real.texts == "padded"
    assert 0.3 < present(real.ended) < 0.8  # the others are longer than a text
    assert 5 < present(real.mean_length) < LENGTH
    assert all(row.mean_length is not None for row in results.naive)
    table = cli("evaluate", "--model", teacher, "--steps", "4,16", "--evaluator", tiny_models.ar, "-n", 20, "--corpus", corpus, "--out",
                tmp_path / "out", "--naive", "--threads", 1).stdout
    assert "length, ended" in table
    assert f"{real.mean_length:.1f}, " in table


def test_what_stands_behind_an_end_moves_no_figure(tiny_models):
    """Two sets of texts that differ behind their ends alone have equal figures; a text of one length has those it had."""
    words = vocabulary()
    tokens = np.random.default_rng(0).integers(2, 200, size=(12, LENGTH))
    tokens[np.arange(12), [3, 7, 9, 15, 5, 6, 2, 15, 4, 8, 10, 11]] = words.eos_id
    other = tokens.copy()
    for row, place in enumerate([3, 7, 9, 15, 5, 6, 2, 15, 4, 8, 10, 11]):
        other[row, place + 1:] = 7
    judge = open_judge(str(tiny_models.ar), torch.device("cpu"), [words])
    one, two = (measure(of_tokens(each, words, words.eos_id), [judge]) for each in (tokens, other))
    assert one == two
    whole = measure(of_tokens(tokens, words), [judge])
    assert (whole.mean_length, whole.ended) == (None, None)
    assert whole.entropy_bits != one.entropy_bits


def test_longer_texts_are_evaluated_in_blocks(cli, tiny_models, corpus):
    report, _ = report_of(cli, "evaluate", "--model", tiny_models.mask, "--steps", 4, "--evaluator", tiny_models.ar, "-n", 5, "--corpus",
                          corpus, "--length", 40, "--threads", 1, "--until", "end")
    row, real = report["rows"][0], report["reference"][0]
    assert row["length"] == real["length"] == 40
    assert row["nfe"] > 4
    assert real["mean_length"] < 40  # documents end within windows, and count to there


def test_from_a_teacher_to_a_student(cli, teacher, corpus, tmp_path, tiny_models):
    """A dataset knows the end, shows its texts up to it, is sound; a compass and a student are made of it; others don't mix in."""
    compass = tmp_path / "compass.yaml"
    compass.write_text(yaml.safe_dump({"corpus": {"path": str(corpus), "part": "first"}, "shape": SHAPE, "rollouts": 32, "rollout_steps": 4,
                                       "optim": {"steps": 10, "batch_size": 8, "warmup": 1}}))
    for kind in ("ar", "nce"):
        assert cli("fit-compass", compass, "--kind", kind, "--teacher", teacher, "--out", tmp_path / kind).code == 0
    manifest = make_dataset(tmp_path / "out", tiny_models, teacher=str(teacher), compass=str(tmp_path / "ar"))
    make_dataset(tmp_path / "other", tiny_models, teacher=str(teacher), compass=str(tmp_path / "nce"))
    end = load_denoiser(teacher).vocabulary.eos_id
    assert manifest.identity.teacher.end_id == end
    store = open_store(str(tmp_path / "out"))
    assert verify(store)[1] == []
    rows = [row for record in manifest.shards for row in read_shard(store, record).to_pylist()]
    assert any(end in row["tokens"][1:-1] for row in rows)
    words = load_denoiser(teacher).vocabulary
    for row in rows:
        tokens = row["tokens"]
        assert row["text"] == words.decode(tokens[: tokens.index(end, 1)] if end in tokens[1:] else tokens)
    summary, _ = report_of(cli, "inspect", tmp_path / "out")
    for arm in summary["arms"]:
        cut = [row["tokens"][: row["tokens"].index(end, 1) + 1] if end in row["tokens"][1:] else row["tokens"]
               for row in rows if row["arm"] == arm["arm"]]
        assert arm["entropy"]["mean"] == pytest.approx(np.mean([float(unigram_entropy(each)) for each in cut]))
        assert arm["distinct_2"] == distinct_n(cut, 2)
    config = {"data": {"paths": [str(tmp_path / "out")]}, "optim": {"steps": 3, "batch_size": 4, "warmup": 1},
              "real": {"weight": 0.5, "corpus": {"path": str(corpus)}}}
    assert distill(DistillConfig.model_validate(config), tmp_path / "student") is not None
    assert load_denoiser(tmp_path / "student").network.config.end_id == end
    copy_dataset(tmp_path / "packed", tiny_models)
    config = {"data": {"paths": [str(tmp_path / "packed")]}, "init": str(teacher)}
    with pytest.raises(InputError, match=r"--init .*its (vocab_size|end_id|tokenizer)"):
        distill(DistillConfig.model_validate(config), tmp_path / "no")


PROMPTS = ["the fox", "a dog sleeps. it", "they"]


@pytest.fixture
def prompted(tmp_path, teacher):
    """A file of prompts, and the tokens of each."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path / "prompts.txt", load_denoiser(teacher).vocabulary.encode(PROMPTS)


def test_trajectories_of_prompts_end_behind_them(cli, teacher, tmp_path, tiny_models, reader, prompted):
    """They are sound, their energies are of what was written, and nothing behind an end, or given, is asked for."""
    (file, prompts), (compass, nats) = prompted, reader
    out = str(tmp_path / "out")
    manifest = make_dataset(out, tiny_models, teacher=str(teacher), compass=str(compass), prompts=str(file), per_prompt=8, trajectories=None,
                            rollout={"steps": 16, "batch_size": 8, "clocks": "spaced"})
    assert verify(open_store(out))[1] == []
    opened, dataset = load_denoiser(teacher), open_dataset(out)
    end, sizes = opened.vocabulary.eos_id, set()
    for arm in ("shaped", "blind"):
        for row in dataset.rows(arm):
            given = prompts[row.trajectory_id // 8]
            tokens = list(row.tokens)
            assert tokens[: len(given)] == given
            cut = cut_of(tokens, end, len(given))
            ended = cut[-1] == end
            assert row.text == opened.vocabulary.decode(cut[:-1] if ended else cut)
            assert row.final_energy == pytest.approx(nats(cut).mean(), abs=2e-3)
            assert list(replay(row, 0.0))[: len(given)] == given
            sizes.add((len(cut) - len(given), ended))
    assert len(sizes) > 4
    assert {ended for _, ended in sizes} == {True, False}
    assert manifest.identity.teacher.end_id == end
    for batch in [batches(out, "event", updates=4, batch_size=16).reader.batch(update) for update in range(4)]:
        for state, target in zip(batch.x_t.tolist(), batch.target.tolist(), strict=True):
            [given] = [each for each in prompts if state[: len(each)] == each]
            asked = [place for place, token in enumerate(target) if token >= 0]
            assert min(asked, default=LENGTH) >= len(given)
            stands = state.index(end, len(given)) if end in state[len(given):] else LENGTH
            assert max(asked, default=0) <= stands
    shown = cli("inspect", out, "--trajectory", 0).stdout
    assert "the fox" in shown.replace("\x1b[4m", "").replace("\x1b[24m", "")


def test_texts_to_prompts_end_and_their_lengths_are_told(cli, teacher, prompted):
    """Tokens of a text count what was given and its end; the shortest that ends is the prompt and its end."""
    file, prompts = prompted
    report, done = report_of(cli, "sample", "--model", teacher, "--prompts", file, "-n", 10, "--steps", 16, "--clocks", "spaced")
    raw, _ = report_of(cli, "sample", "--model", teacher, "--prompts", file, "-n", 10, "--steps", 16, "--clocks", "spaced", "--until", "length")
    assert f"{sum(report['ended'])} of 30 texts ended" in done.stderr
    assert 0 < sum(report["ended"]) < 30
    for number, (text, whole, size, ended) in enumerate(zip(report["texts"], raw["texts"], report["tokens"], report["ended"], strict=True)):
        prompt = PROMPTS[number // 10]
        assert text.startswith(prompt)
        assert whole.startswith(text + "\n") if ended else whole == text
        assert size > len(prompts[number // 10])
        assert ended or size == LENGTH
        assert report["prompted"][number] == {"prompt": prompt, "written": [text.removeprefix(prompt)]}


def assert_continuations(row, texts, given, end, judges):
    """All figures of a row are of what stands behind `given` [R] tokens of each text, up to its end; judges: name -> nats of a text."""
    cut = [cut_of(text, end, size) for text, size in zip(texts, given, strict=True)]
    rest = [text[size:] for text, size in zip(cut, given, strict=True)]
    assert row.given == pytest.approx(np.mean(given))
    assert row.mean_length == pytest.approx(np.mean([len(each) for each in rest]))
    assert row.ended == pytest.approx(np.mean([each[-1] == end for each in rest]))
    assert row.entropy_bits == pytest.approx(np.mean([float(unigram_entropy(each)) for each in rest]))
    assert (row.distinct_2, row.distinct_4) == (distinct_n(rest, 2), distinct_n(rest, 4))
    assert row.self_bleu == self_bleu([np.array(each) for each in rest])
    for name, nats in judges.items():
        found = sum(nats(text)[size:].sum() for text, size in zip(cut, given, strict=True))
        assert row.judges[name].tokens == sum(map(len, rest))
        assert row.judges[name].perplexity == pytest.approx(math.exp(found / sum(map(len, rest))), rel=1e-4)


def texts_of(folder, steps):
    """The tokens of the texts that an evaluation keeps of a model in so many steps; None: of real text."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in (folder / "samples").iterdir()]
    [found] = [table for table in tables if json.loads(table.schema.metadata[b"tsdfm"])["identity"].get("steps") == steps]
    return found["tokens"].to_pylist()


def test_figures_after_the_prompts_of_a_file_stop_at_ends(cli, teacher, tmp_path, tiny_models, reader, prompted):
    """Under a judge of the model's tokens, and under one that reads text."""
    (file, prompts), (judge, nats) = prompted, reader
    report, _ = report_of(cli, "evaluate", "--model", teacher, "--steps", 16, "--evaluator", judge, "--evaluator", tiny_models.ar, "-n", 20,
                          "--prompts", file, "--out", tmp_path / "out", "--threads", 1, "--clocks", "spaced")
    [row] = Results.model_validate(report).rows
    texts, end = texts_of(tmp_path / "out", 16), load_denoiser(teacher).vocabulary.eos_id
    given = [prompts[number % 3] for number in range(20)]
    assert [text[: len(each)] for text, each in zip(texts, given, strict=True)] == given
    assert_continuations(row, texts, list(map(len, given)), end, {str(judge): nats})
    assert 0 < present(row.ended) < 1
    other = open_judge(str(tiny_models.ar), torch.device("cpu"))
    shown = [load_denoiser(teacher).vocabulary.decode([token for token in cut_of(text, end, 1) if token != end]) for text in texts]
    assert row.judges[str(tiny_models.ar)].tokens <= sum(map(len, other.encode(shown))) - sum(
        len(each) for each in other.encode([PROMPTS[number % 3] for number in range(20)])) + 20


@pytest.mark.parametrize("until", [None, "length"])
def test_held_out_documents_that_go_on_are_the_prompts(cli, teacher, tmp_path, corpus, reader, until):
    """Only documents longer than the beginning have one to give: no prompt holds an end, whatever is measured behind it."""
    judge, nats = reader
    report, _ = report_of(cli, "evaluate", "--model", teacher, "--steps", 16, "--evaluator", judge, "-n", 20, "--prompt-tokens", 7, "--corpus",
                          corpus, "--out", tmp_path / "out", "--threads", 1, *([] if until is None else ["--until", until]))
    results, end = Results.model_validate(report), load_denoiser(teacher).vocabulary.eos_id
    [real], [row] = results.reference, results.rows
    theirs, texts = texts_of(tmp_path / "out", None), texts_of(tmp_path / "out", 16)
    assert 4 <= len(theirs) < 20
    assert not any(end in text[:7] for text in theirs)
    assert [text[:7] for text in texts] == [theirs[number % len(theirs)][:7] for number in range(20)]
    if until is None:
        assert_continuations(real, theirs, [7] * len(theirs), end, {str(judge): nats})
        assert_continuations(row, texts, [7] * 20, end, {str(judge): nats})
    else:
        assert (row.mean_length, row.ended) == (None, None)


def test_bad_inputs(cli, tiny_models, corpus, tmp_path, teacher):
    sample = ["sample", "--model", tiny_models.mask, "--steps", 2]
    assert_refused(cli(*sample, "--length", 20, "--overlap", 16), "overlap: 16 tokens leave nothing to write", "16")
    assert_refused(cli(*sample, "--length", 20, "--overlap", 99), "overlap: 99", "give fewer")
    assert_refused(cli(*sample, "--length", 20, "--overlap", 0), "overlap: ", "greater than or equal to 1")
    assert_refused(cli(*sample, "--overlap", 4), "overlap: is of texts that are longer than the model's 16", "--length")
    assert_refused(cli(*sample, "--length", 65537), "rollout.length: ")
    assert_refused(cli("sample", "--set", "until=never"), "until: ", "'end' or 'length'")
    assert cli(*sample, "--until", "never").code == 2
    assert_refused(cli(*sample, "--length", 20, "--prompt", "the quick " * 30), "prompt: has", "a text of the model 20")
    evaluate = ["evaluate", "--model", tiny_models.mask, "--steps", 2, "--corpus", corpus]
    assert_refused(cli(*evaluate, "--overlap", 4), "overlap: is of texts that are longer")
    assert_refused(cli(*evaluate, "--length", 20, "--overlap", 16), "overlap: 16")
    one = tmp_path / "one.txt"
    one.write_text("only one document, and a long one. " * 200)
    pretrain = ["pretrain", "--out", tmp_path / "t", "--length", 16, "--vocab-size", 300, "--texts", "padded", "--updates", 2]
    assert_refused(cli(*pretrain, "--corpus", one), "document")
    other = ["pretrain", "--out", tmp_path / "t", "--texts", "padded", "--corpus", corpus, "--tokenizer", teacher]
    assert_refused(cli(*other, "--eos", "<end>"), "--eos <end>", "no such token")
    config = json.loads((teacher / "config.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (broken / name).write_bytes((teacher / name).read_bytes())
    for end, words in ((5, "don't belong together"), (config["mask_id"], "end_id"), (10**6, "end_id"), (-1, "end_id")):
        (broken / "config.json").write_text(json.dumps(config | {"end_id": end}))
        assert_refused(cli("sample", "--model", broken), "end_id", words)


def test_tokens_are_not_chosen_one_by_one_where_texts_end(cli, teacher, tmp_path):
    assert_refused(cli("generate", "--teacher", teacher, "--compass", "denoiser", "--level", "token", "--out", tmp_path / "out"),
                   "shaping.level: 'token' is for texts that don't end", "give --level sequence")
    assert not (tmp_path / "out").exists()
