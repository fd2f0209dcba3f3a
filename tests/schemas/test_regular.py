"""Input files are regular files: a pipe never blocks, a device or folder is refused, wherever a name of one is given."""

import os
import re
import socket
from pathlib import Path

import pytest

from tests.support import assert_refused, copy_dataset, write_corpus
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.schemas.regular import check_regular, open_regular, read_regular

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["pipe", "device", "socket", "folder"])
def irregular(request, tmp_path):
    path = tmp_path / "it"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("read", [read_regular, check_regular, open_regular, sha256_file])
def test_only_regular_files_are_read(irregular, read):
    with pytest.raises(OSError):  # noqa: PT011  (of several kinds)
        read(irregular)


def test_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"some\0bytes")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "file", tmp_path / "link"):
        check_regular(path)
        assert read_regular(path) == b"some\0bytes"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")


def test_every_input_that_is_a_pipe_is_refused(cli, tmp_path, tiny_models):
    """One line, at once, whatever the file is for."""
    data, model, pipe = tmp_path / "data", tmp_path / "model", tmp_path / "pipe.txt"
    copy_dataset(data, tiny_models)
    os.mkfifo(pipe)

    def replaced(path):
        held = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        return held

    for name in ("manifest.json", "tokenizer.json", "data/train-00000-of-00003.parquet"):
        held = replaced(data / name)
        for command in (["verify", data], ["inspect", data, "--trajectory", "0"]):
            outcome = cli(*command)
            assert outcome.code in (1, 2), (command, outcome)
            assert "defect" not in outcome.stderr
        (data / name).unlink()
        (data / name).write_bytes(held)
    assert cli("verify", data).code == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        model.mkdir(exist_ok=True)
        for file in tiny_models.mask.iterdir():
            (model / file.name).unlink(missing_ok=True)
            (model / file.name).write_bytes(file.read_bytes())
        replaced(model / name)
        assert_refused(cli("sample", "--model", model, "-n", "1"), name)
    assert_refused(cli("generate", pipe), str(pipe))
    assert_refused(cli("import-teacher", pipe, "--out", tmp_path / "teacher"), str(pipe))
    corpus = ["evaluate", "--model", tiny_models.mask, "--steps", "1", "-n", "2", "--corpus"]
    assert_refused(cli(*corpus, pipe), f"{pipe}: neither a regular file nor a folder")
    (tmp_path / "texts").mkdir()
    write_corpus(tmp_path / "texts" / "a.txt", 50)
    os.mkfifo(tmp_path / "texts" / "b.txt")
    assert_refused(cli(*corpus, tmp_path / "texts"), "b.txt")


OPENING = re.compile(r"\.read_bytes\(|\.read_text\(|(?<!def )(?<![\w.])open\(|\.open\((\"|')r|from_file\(")
# Their own sources, files of the package, of /proc and of /sys; texts are looked at where they are opened.
TRUSTED = {"jobs/cli.py", "jobs/shell/page.py", "jobs/shell/cluster.py", "jobs/crew/signs.py", "jobs/plan/plan.py", "jobs/plan/rates.py", "pipeline/publishing/bundle.py",
           "pipeline/text/stored_text.py", "pipeline/dataset/player.py", "pipeline/text/sources/python.py",
           "pipeline/storage/hub/store.py"}


def test_files_are_opened_in_one_place():
    found = {str(path.relative_to(ROOT)) for layer in ("schemas", "pipeline", "jobs") for path in (ROOT / layer).rglob("*.py")
             if OPENING.search(path.read_text())}
    assert found <= TRUSTED, "read input files by tsdfm.schemas.regular"
