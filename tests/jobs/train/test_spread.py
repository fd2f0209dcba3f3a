"""Tokenising before a training: by tasks of Ray as in this process, and stopped at the user's wish."""

import json
import os
import signal

import pytest

from tsdfm.jobs.crew.training.progress import training_progress
from tsdfm.jobs.shell.interrupts import Interrupted
from tsdfm.jobs.shell.trackers import untracked
from tsdfm.pipeline.text import stored_text
from tsdfm.pipeline.text.token_file import TokenJob, one_by_one, token_stream
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.optim import OptimConfig

DOCUMENTS = [f"Document {i} says that the square of it is {i * i}, and that [MASK] is text." for i in range(300)]


def test_an_interrupt_stops_what_goes_before_the_training():
    with training_progress("pretrain", OptimConfig(steps=5), untracked) as (_, _, progress):
        progress("reading the corpus", 0, 1)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match=r"stopped before the training .tokenising.*resume with"):
            progress("tokenising", 0, 1)


@pytest.mark.slow
def test_tasks_make_the_tokens_of_one_process(tmp_path, monkeypatch, head):
    from tsdfm.jobs.shell.cluster import cluster
    from tsdfm.jobs.train.spread import on_ray

    monkeypatch.setattr(stored_text, "PIECE_BYTES", 2000)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    words = Vocabulary.train(DOCUMENTS, 300)
    text = stored_text.stored_text(CorpusConfig(path=str(path)))
    heard = []
    with cluster(head.address, None):
        stream = token_stream(text, words, "all", lambda *told: heard.append(told), on_ray)
        assert stream[:].tolist() == words.stream(text.documents("all")).tolist()
        assert heard[-1][1] == heard[-1][2] == len(text.facts.pieces)
        job = TokenJob(text, "first", words.to_json(), words.where)  # whose folder is not there: no task can write, and nor can we
        with pytest.raises(FileNotFoundError):
            list(on_ray(job, [0]))
        job.folder.mkdir()
        job.file(1).write_bytes(b"half")
        assert sum(tokens for _, tokens in one_by_one(job, [0])) == sum(tokens for _, tokens in on_ray(job, [0]))
