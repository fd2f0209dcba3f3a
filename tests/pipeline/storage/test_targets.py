"""Nothing that a command has not made is lost to what it writes."""

import os

import pytest

from tsdfm.pipeline.storage.targets import check_file, check_folder
from tsdfm.schemas.base import InputError


@pytest.mark.parametrize("names", [[], [".lock"], ["results.json"], ["notes.txt", "results.json"]])
def test_a_folder_of_ones_own_or_an_empty_one_is_taken(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    check_folder(tmp_path, {"results.json", "samples"}, "evaluation")
    check_folder(tmp_path / "new", {"results.json"}, "evaluation")


def test_a_folder_of_something_else_is_refused(tmp_path):
    for name in ("manifest.json", "data", "README.md", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"holds files and no evaluation \(README.md, data, manifest.json\)"):
        check_folder(tmp_path, {"results.json", "samples"}, "evaluation")
    with pytest.raises(InputError, match="it is a file"):
        check_folder(tmp_path / "data", {"results.json"}, "evaluation")


def test_a_file_is_written_over_one_of_its_kind_alone(tmp_path):
    page, manifest = tmp_path / "page.html", tmp_path / "manifest.json"
    page.write_bytes(b"<!doctype html>")
    manifest.write_bytes(b"{}")
    os.mkfifo(tmp_path / "pipe")

    def check(name):
        check_file(tmp_path / name, "--html", lambda data: data.startswith(b"<!"), "page")

    check("new.html")
    check("page.html")
    (tmp_path / "empty").touch()  # as mktemp makes one
    check("empty")
    with pytest.raises(InputError, match=r"^--html \S+manifest.json: is there and is no page, and would be lost"):
        check("manifest.json")
    with pytest.raises(InputError, match="not a regular file"):
        check("pipe")
