"""Models by their names on the Hub: pinned, cached, checked, and refused in one line."""

import pytest

from tests.loopback_hub import folder_files
from tests.support import make_dataset
from tsdfm.pipeline.models.folder import load, load_model
from tsdfm.pipeline.storage.hub.models import hub_model, located, pinned
from tsdfm.pipeline.training.distill import distill
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim


@pytest.fixture
def repo(hub, tiny_models):
    """A repository with a teacher, and code and a pickle that nobody asked for."""
    repo = hub.add("model", "team/teacher")
    repo.commit(folder_files(tiny_models.mask) | {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"\x80"})
    return repo


def only_copy(folder, name):
    return (folder / name).resolve()


def test_a_model_is_opened_at_the_commit_of_its_revision(repo, hub, tiny_models):
    first = repo.head
    repo.refs["v1"] = first
    repo.commit(folder_files(tiny_models.foreign))
    assert load_model("hub:team/teacher@v1").fingerprint == load(tiny_models.mask).fingerprint
    assert load_model("hub:team/teacher").fingerprint == load(tiny_models.foreign).fingerprint
    assert pinned("hub:team/teacher@v1") == f"hub:team/teacher@{first}"
    assert (pinned("embedded"), pinned("some/folder")) == ("embedded", "some/folder")
    assert not any("modeling.py" in call or "pytorch_model.bin" in call for call in hub.calls)


def test_without_the_hub_the_cache_answers(repo, hub):
    folder = located("hub:team/teacher")
    hub.stop()
    assert located(f"hub:team/teacher@{repo.head}") == folder
    assert pinned("hub:team/teacher") == f"hub:team/teacher@{repo.head}"
    assert "model.safetensors" in hub_model("hub:team/teacher").files()
    with pytest.raises(WorkError, match="can't be reached"):
        located("hub:team/another")
    with pytest.raises(WorkError, match="can't be reached"):
        located("hub:team/teacher@v2")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_of_the_cache_is_fetched_anew(repo, hub, name):
    copy = only_copy(located("hub:team/teacher"), name)
    sound = copy.read_bytes()
    copy.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    located("hub:team/teacher")
    assert copy.read_bytes() == sound
    copy.write_bytes(b"damaged")
    hub.stop()
    with pytest.raises(WorkError, match=rf"{name} is damaged in the cache"):
        located(f"hub:team/teacher@{repo.head}")


@pytest.mark.parametrize(("name", "said"), [
    ("hub:", "write hub:USER/NAME"), ("hub:team/", "write hub:USER/NAME"), ("hub:a/b/c", "write hub:USER/NAME"),
    ("hub:team/teacher@", "write hub:USER/NAME"), ("hub:team/teacher@v1@v2", "write hub:USER/NAME"),
    ("hub:team/teacher:train", "write hub:USER/NAME"), ("hub:team/te acher", "write hub:USER/NAME"),
    ("hub:te..am/teacher", "can't be a repository's name"), ("hub:team/none", "no such repository"),
    ("hub:team/teacher@v9", "no such revision"), (f"hub:team/teacher@{'0' * 40}", "no such revision"),
    ("hub:team/gated", "access is gated"), ("hub:other/private", "no such repository, or it is private"),
])
def test_names_that_give_no_model_are_refused_in_one_line(repo, hub, name, said):
    hub.add("model", "team/gated", gated=True).commit({"config.json": b"{}"})
    hub.add("model", "other/private", private=True)
    with pytest.raises(InputError, match=said) as caught:
        located(name)
    assert "\n" not in str(caught.value)


def test_every_place_that_names_a_model_takes_one_of_the_hub(repo, hub, tiny_models, tmp_path, cli):
    hub.add("model", "team/compass").commit(folder_files(tiny_models.ar))
    manifest = make_dataset(tmp_path / "out", tiny_models, teacher="hub:team/teacher", compass="hub:team/compass", trajectories=4)
    assert manifest.teacher == f"hub:team/teacher@{repo.head}"
    assert manifest.identity.teacher.fingerprint == load(tiny_models.mask).fingerprint
    done = cli("sample", "--model", "hub:team/teacher", "--steps", 2, "-n", 1, "--json")
    assert done.code == 0, done.stderr
    distill(DistillConfig(data=DataConfig(paths=[str(tmp_path / "out")]), init="hub:team/teacher",
                          optim=DistillOptim(steps=1, batch_size=2)), tmp_path / "student")
    assert f'"hub:team/teacher@{repo.head}"' in (tmp_path / "student" / "training.json").read_text()
    done = cli("evaluate", "--model", "hub:team/teacher", "--evaluator", "hub:team/compass", "--steps", 2, "-n", 2, "--no-reference",
               "--json")
    assert done.code == 0, done.stderr
    assert f"hub:team/teacher@{repo.head}" in done.stdout
    done = cli("sample", "--model", "hub:team/none", "--steps", 2)
    assert (done.code, done.stdout) == (2, "")
    assert "hub:team/none: no such repository" in done.stderr
