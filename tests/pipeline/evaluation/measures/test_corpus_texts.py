"""What is kept of a corpus is found again while the text is the same, whatever else changes."""

import os

import pytest

from tsdfm.pipeline.evaluation.measures.corpus_texts import corpus_identity
from tsdfm.schemas.corpus import CorpusConfig


def renamed(folder):
    (folder / "b.txt").rename(folder / "test.txt")  # which is of another split


def as_large_and_as_old(folder):
    file = folder / "b.txt"
    before = file.stat()
    file.write_text(file.read_text().swapcase())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(folder):
    os.utime(folder / "a.txt", ns=(1, 1))


@pytest.mark.parametrize(("change", "same"), [(renamed, False), (as_large_and_as_old, False), (touched, True)])
def test_the_text_of_a_folder_counts(tmp_path, change, same):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"A text, {name}.")
    corpus = CorpusConfig(path=str(tmp_path))
    before = corpus_identity(corpus)
    change(tmp_path)
    assert (corpus_identity(corpus) == before) == same


def test_the_commit_of_the_hub_counts(monkeypatch):
    class Text:
        repo, config, split = "team/text", "default", "train"

        def __init__(self, commit: str) -> None:
            self.commit = commit

        def texts(self, field: str) -> list[str]:
            return [f"A text at {self.commit}."]

    found = []
    for commit in ("1", "2", "1"):
        monkeypatch.setattr("tsdfm.pipeline.text.documents.HubText.find", lambda path, commit=commit: Text(commit))
        found.append(corpus_identity(CorpusConfig(path="hub:team/text")))
    assert found[0] == found[2] != found[1]
