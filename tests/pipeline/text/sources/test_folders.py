"""Which files of a folder are read: all texts, or, of a snapshot of a Hub dataset, what `datasets` takes for the split train."""

import json

import pytest

from tsdfm.pipeline.text.documents import Reading, read_documents
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import CorpusConfig

CARD = "---\nlicense: mit\n{}---\n# A dataset\nThis is a card.\n"


def make(folder, *names):
    """Files that each hold their own name as a text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n" if name.endswith((".txt", ".md")) else json.dumps({"text": name}))


def read(folder, **more):
    reading = Reading()
    found = list(read_documents(CorpusConfig(path=str(folder), **more), reading))
    return found, {name: number for name, number in reading.left_out.items() if number}


def refused(folder):
    with pytest.raises(InputError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_texts_is_all_of_them_in_the_order_of_their_paths(tmp_path):
    names = ["a.txt", "b.jsonl", "c/latest-news.txt", "c/z.JSONL", "d.ndjson"]
    make(tmp_path, *reversed(names))
    assert read(tmp_path) == (names, {})


def test_cards_licences_and_hidden_files_are_no_texts(tmp_path):
    make(tmp_path, "a.txt", "README.md", "readme_zh.md", "LICENSE", "LICENSE-MIT.txt", "sub/README.txt", "CITATION.cff", ".gitattributes", ".git/b.txt",
         "sub/.hidden.txt", "dataset_infos.json")
    assert read(tmp_path) == (["a.txt"], {"cards": 7})
    assert read(tmp_path / "README.md") == (["README.md"], {})  # asked for by name


def test_files_of_other_kinds_are_counted(tmp_path):
    make(tmp_path, "a.txt", "b.pdf", "c.pdf", "d.bin.gz", "Makefile")
    assert read(tmp_path) == (["a.txt"], {"files of other kinds (.bin, .pdf, makefile)": 4})
    (tmp_path / "a.txt").unlink()
    message = refused(tmp_path)
    assert "no .txt" in message
    assert "2 .pdf" in message


@pytest.mark.parametrize(("names", "train"), [
    (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"], 2),
    (["train.jsonl", "validation.jsonl", "notes.jsonl"], 1), (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], 2),
    (["wiki_train.txt", "wiki_dev.txt", "wiki_test.txt"], 1),
    (["data/train-00000-of-00001.jsonl", "data/unsupervised-00000-of-00001.jsonl"], 1),
])
def test_of_a_snapshot_only_the_split_train_is_read(tmp_path, names, train):
    make(tmp_path, *names)
    (tmp_path / "README.md").write_text(CARD.format(""))
    assert read(tmp_path) == (names[:train], {"files of other splits": len(names) - train, "cards": 1})


def test_test_and_validation_are_not_trained_on_where_no_file_is_named_train(tmp_path):
    make(tmp_path, "a.jsonl", "test.jsonl", "val.jsonl")
    assert read(tmp_path) == (["a.jsonl"], {"files of other splits": 2})
    (tmp_path / "a.jsonl").unlink()
    assert "splits test, validation" in refused(tmp_path)


def test_a_card_says_which_files_are_train(tmp_path):
    make(tmp_path, "x/a.jsonl", "y/b.jsonl")
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: y/*\n  - split: test\n    path: x/*\n"
    (tmp_path / "README.md").write_text(CARD.format(configs))
    assert read(tmp_path)[0] == ["y/b.jsonl"]


def test_a_card_of_several_configs_is_refused_with_their_names(tmp_path):
    make(tmp_path, "x/a.jsonl", "y/b.jsonl")
    configs = "configs:\n- config_name: first\n  data_files: x/*\n- config_name: second\n  data_files: y/*\n"
    (tmp_path / "README.md").write_text(CARD.format(configs))
    assert "first, second" in refused(tmp_path)
    assert read(tmp_path / "x")[0] == ["x/a.jsonl"]


def test_a_relative_folder_and_links_into_a_cache(tmp_path, monkeypatch):
    make(tmp_path, "blobs/0", "blobs/1")
    snapshot = tmp_path / ".cache" / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-00000-of-00001.jsonl").symlink_to(tmp_path / "blobs" / "0")
    (snapshot / "data" / "test-00000-of-00001.jsonl").symlink_to(tmp_path / "blobs" / "1")
    monkeypatch.chdir(snapshot.parent)
    assert read("abc")[0] == ["blobs/0"]


def test_a_broken_file_is_named(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "b.jsonl").write_text("no record\n")
    assert f"{tmp_path / 'b.jsonl'}:1" in refused(tmp_path)


@pytest.mark.parametrize("card", [False, True])
@pytest.mark.parametrize("name", ["br[ack]ed", "sta*r", "quest?n", "[!a]", "[train]"])
def test_a_folders_own_name_is_no_pattern(tmp_path, name, card):
    """`br[ack]ed/test-2.txt` was trained on: nothing was found of the splits that its files are named for."""
    folder = tmp_path / name
    make(folder, "train-1.txt", "test-2.txt")
    if card:
        configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*\n  - split: test\n    path: test-*\n"
        (folder / "README.md").write_text(CARD.format(configs))
    found, left_out = read(folder)
    assert found == ["train-1.txt"]
    assert left_out["files of other splits"] == 1


def test_linked_folders_are_read_once_and_no_link_goes_round(tmp_path):
    make(tmp_path, "d/a.txt", "d/sub/b.txt", "other/c.txt", "other/deep/e.txt", "other/.hidden/x.txt")
    (tmp_path / "d" / "more").symlink_to("../other")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "d" / "sub" / "round").symlink_to("..")
    (tmp_path / "other" / "back").symlink_to("../d")
    (tmp_path / "d" / ".no").symlink_to("../other")
    found, left_out = read(tmp_path / "d")
    assert (sorted(found), left_out) == (["d/a.txt", "d/sub/b.txt", "other/c.txt", "other/deep/e.txt"], {})


def test_splits_of_linked_folders(tmp_path):
    make(tmp_path, "other/train-1.txt", "other/test-1.txt")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "more").symlink_to("../other")
    assert read(tmp_path / "d") == (["other/train-1.txt"], {"files of other splits": 1})
