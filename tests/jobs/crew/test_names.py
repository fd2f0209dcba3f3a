"""Names for processes that stand in another directory."""

import pytest

from tsdfm.jobs.crew.names import anchored
from tsdfm.schemas.corpus import NAMED


@pytest.mark.parametrize("name", [*NAMED, "embedded", "embedded:uniform", "none", "denoiser"])
def test_what_has_a_name_is_never_taken_for_the_folder_that_is_called_so(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert anchored(name) == name
    assert anchored("mine") == str(tmp_path / "mine")
