"""A finished dataset grows: the bytes are those of a larger one made at once, nothing is lost whenever it is cut, and the past is told."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import make_dataset, tiny_config, tree, with_other_weights
from tsdfm.pipeline.dataset import growth
from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset, standing
from tsdfm.pipeline.models.folder import load
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import LocalStore, Store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.former import FORMER, FormerModel
from tsdfm.schemas.generate import GenerateConfig

CPU = torch.device("cpu")


def grow(out, models, trajectories, maker=None):
    config = GenerateConfig.model_validate(tiny_config(out, models) | {"trajectories": trajectories})
    return generate_dataset(config, maker=maker or InThisProcess(CPU))


def files(out) -> dict[str, str]:
    """Hashes of all files but the manifest, whose history and bytes are of their own."""
    return {path: sha for path, sha in tree(out).items() if path != "manifest.json"}


def sound(out) -> int:
    manifest, faults = verify(str(out))
    assert faults == []
    return manifest.identity.trajectories


@pytest.mark.parametrize("larger", [11, 23])  # as many shards as before; more
def test_a_grown_dataset_is_the_larger_one_made_at_once(tmp_path, tiny_models, larger):
    made, out = tmp_path / "at once", tmp_path / "grown"
    make_dataset(made, tiny_models, trajectories=larger)
    before = make_dataset(out, tiny_models)
    report = grow(out, tiny_models, larger)
    assert (report.grown_from, report.kept, report.made) == (10, 2, -(-larger // 4) - 2)
    assert files(out) == files(made)
    manifest, at_once = json.loads((out / "manifest.json").read_text()), json.loads((made / "manifest.json").read_text())
    [past] = manifest.pop("history")
    assert manifest == at_once
    assert (past["trajectories"], past["rows"], past["bytes"]) == (10, 20, before.totals.bytes)
    assert past["versions"] == before.versions
    assert past["until"].endswith("Z")
    assert sound(out) == larger


def test_the_past_is_told_in_full_and_kept(tmp_path, tiny_models):
    make_dataset(tmp_path, tiny_models, trajectories=4)
    for larger in (9, 13, 13):
        grow(tmp_path, tiny_models, larger)
    assert [past.trajectories for past in read_manifest(open_store(str(tmp_path))).history] == [4, 9]


def test_a_dataset_that_never_grew_says_nothing_of_it(tmp_path, tiny_models):
    make_dataset(tmp_path, tiny_models)
    assert "history" not in (tmp_path / "manifest.json").read_text()


def test_a_dataset_does_not_shrink(tmp_path, tiny_models):
    make_dataset(tmp_path, tiny_models)
    there = tree(tmp_path)
    with pytest.raises(InputError, match="holds 10 trajectories, and a dataset does not shrink; give --trajectories 10 or more"):
        grow(tmp_path, tiny_models, 9)
    assert tree(tmp_path) == there


def test_what_differs_in_more_than_its_size_is_another_dataset(tmp_path, tiny_models):
    make_dataset(tmp_path, tiny_models)
    config = tiny_config(tmp_path, tiny_models) | {"trajectories": 20, "arm": "blind"}
    with pytest.raises(InputError, match="another config"):
        generate_dataset(GenerateConfig.model_validate(config), maker=InThisProcess(CPU))


def test_a_damaged_shard_is_made_anew_and_not_carried_over(tmp_path, tiny_models):
    make_dataset(tmp_path / "at once", tiny_models, trajectories=12)
    out = tmp_path / "out"
    make_dataset(out, tiny_models)
    victim = sorted((out / "data").iterdir())[0]
    data = victim.read_bytes()
    victim.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    assert grow(out, tiny_models, 12).made == 2
    assert files(out) == files(tmp_path / "at once")


def test_data_on_another_disk_grows_too(tmp_path, tiny_models, monkeypatch):
    """A file can't be renamed to a folder that a link takes to another disk; it is copied there, whole or not at all."""
    make_dataset(tmp_path / "at once", tiny_models, trajectories=12)
    out, rename = tmp_path / "out", Path.replace

    def renamed(source: Path, target: Path) -> Path:
        if source.parent.resolve() != target.parent.resolve():
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        return rename(source, target)

    make_dataset(out, tiny_models)
    (out / "data").rename(tmp_path / "disk")
    (out / "data").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(Path, "replace", renamed)
    with monkeypatch.context() as full:  # as the disk is, at first
        full.setattr(shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(WorkError, match="disk is full"):
            grow(out, tiny_models, 12)
    assert grow(out, tiny_models, 12).made == 0
    assert sound(out) == 12
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {path.name for path in (tmp_path / "at once" / "data").iterdir()}
    assert (out / "data").is_symlink()


def test_what_others_put_there_stays(tmp_path, tiny_models):
    """`data` loses the former dataset's files, and no others; text that was written into the card stays while no row is made."""
    make_dataset(tmp_path, tiny_models)
    for name in ("data/notes.txt", "data/sub/of/mine.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    with (tmp_path / "README.md").open("a") as card:
        card.write("Read this first.")
    told = json.loads((tmp_path / "manifest.json").read_text())
    told["versions"]["torch"] = "1.0"
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    there = tree(tmp_path)
    report = grow(tmp_path, tiny_models, 10)
    assert (report.made, report.kept) == (0, 3)
    assert tree(tmp_path) == there
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("Read this first.")
    grow(tmp_path, tiny_models, 10)
    assert {path for path, sha in tree(tmp_path).items() if sha != there[path]} == {"README.md"}
    grow(tmp_path, tiny_models, 13)
    assert read_manifest(open_store(str(tmp_path))).history[0].versions["torch"] == "1.0"
    assert sorted(path.name for path in (tmp_path / "data").rglob("*.*")) == [
        "mine.parquet", "notes.txt", *(f"train-0000{number}-of-00004.parquet" for number in range(4))]


@pytest.mark.parametrize("asked", [10, 13])
def test_of_a_growth_that_is_damaged_it_says_what_to_delete(tmp_path, tiny_models, asked):
    make_dataset(tmp_path, tiny_models)
    there = tree(tmp_path)
    (tmp_path / ".growing" / "data").mkdir(parents=True)
    (tmp_path / ".growing" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: .*delete the folder \S+/.growing: what is lost"):
        grow(tmp_path, tiny_models, asked)
    shutil.rmtree(tmp_path / ".growing")
    assert tree(tmp_path) == there
    grow(tmp_path, tiny_models, asked)
    assert sound(tmp_path) == asked


class Dies(InThisProcess):
    """Makes one shard, and is killed."""

    def make(self, work, missing, progress):
        super().make(work, missing[:1], progress)
        raise KeyboardInterrupt


def test_while_it_grows_it_is_what_it_was(tmp_path, tiny_models):
    out = tmp_path / "out"
    make_dataset(out, tiny_models)
    there = tree(out)
    with pytest.raises(KeyboardInterrupt):
        grow(out, tiny_models, 23, Dies(CPU))
    assert {path: sha for path, sha in tree(out).items() if not path.startswith(".growing")} == there
    assert sound(out) == 10
    with pytest.raises(InputError, match="is growing to 23 trajectories; finish that with --trajectories 23, or give it up with "
                                         "--trajectories 10"):
        grow(out, tiny_models, 40)
    report = grow(out, tiny_models, 23)
    assert (report.kept, report.made) == (3, 3)  # two carried over, one made before it was killed
    assert sound(out) == 23
    assert not (out / ".growing").exists()


def test_a_growth_is_given_up_by_asking_for_what_is_there(tmp_path, tiny_models):
    make_dataset(tmp_path, tiny_models)
    there = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path, tiny_models, 23, Dies(CPU))
    assert grow(tmp_path, tiny_models, 10).made == 0
    assert tree(tmp_path) == there


@pytest.mark.parametrize("larger", [12, pytest.param(23, marks=pytest.mark.slow)])
def test_whatever_is_cut_while_it_takes_its_place_ends_well(tmp_path, tiny_models, monkeypatch, larger):
    """Killed before each write, removal and move of that last phase: no reader is told wrong, and the next run ends it."""
    make_dataset(tmp_path / "at once", tiny_models, trajectories=larger)
    left, changed = [0], {name: getattr(LocalStore, name) for name in ("write", "remove", "move")}

    def cut(name):
        def act(self, *arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return changed[name](self, *arguments)
        return act

    finish = growth.finish_growth
    steps, cuts, done = 0, 0, False
    while not done:
        out = tmp_path / str(steps)
        make_dataset(out, tiny_models)
        with monkeypatch.context() as patch:
            def interrupted(store: Store, patch=patch, steps=steps) -> None:
                left[0] = steps
                for name in changed:
                    patch.setattr(LocalStore, name, cut(name))
                finish(store)

            patch.setattr("tsdfm.pipeline.flow.generate.finish_growth", lambda store: interrupted(store) if growing(store) else None)
            try:
                grow(out, tiny_models, larger)
                done = True
            except KeyboardInterrupt:
                cuts += 1
        if (out / "manifest.json").exists():
            assert sound(out) in (10, larger)
        else:
            with pytest.raises(InputError, match="this dataset is unfinished"):
                read_manifest(open_store(str(out)))
        grow(out, tiny_models, larger)
        assert files(out) == files(tmp_path / "at once")
        assert sound(out) == larger
        steps += 3 if larger == 23 else 5
    assert cuts >= 2


def growing(store: Store) -> bool:
    return store.read(f"{growth.GROWING}/manifest.json") is not None


def test_an_unfinished_dataset_is_finished_first(tmp_path, tiny_models):
    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path, tiny_models, 10, Dies(CPU))
    with pytest.raises(InputError, match="unfinished dataset of 10 trajectories; finish it with --trajectories 10"):
        grow(tmp_path, tiny_models, 23)


def test_a_dataset_on_an_object_store_grows_alike(tmp_path, tiny_models):
    make_dataset("memory://grown/out", tiny_models)
    grow("memory://grown/out", tiny_models, 12)
    make_dataset(tmp_path, tiny_models, trajectories=12)
    store = open_store("memory://grown/out")
    assert {path: store.read(path) for path in files(tmp_path)} == {path: (tmp_path / path).read_bytes() for path in files(tmp_path)}
    assert set(store.names()) - {".growing", ".receipts"} == {"README.md", "data", "manifest.json", "tokenizer.json"}  # a folder's name may stay
    assert store.names(".growing/data") == []


# ------------------------------------------------------------------ of models that were replaced since

@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    """A finished dataset, and models of the same names whose weights are others."""
    root = tmp_path_factory.mktemp("made")
    make_dataset(root / "out", tiny_models)
    now = {name: with_other_weights(getattr(tiny_models, name), root / name) for name in ("mask", "ar")}
    return root / "out", replace(tiny_models, **now)


@pytest.mark.parametrize("former", [["mask"], ["ar"], ["mask", "ar"], []], ids=lambda names: "+".join(names) or "nobody's")
@pytest.mark.parametrize("state", ["finished", "growing", "unfinished"])
def test_of_embedded_models_of_a_former_version_it_says_which(tmp_path, tiny_models, made, monkeypatch, state, former):
    """Those that are unknown are told by fingerprint, as ever. Nothing is changed, and a plan says the same."""
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    if state == "unfinished":
        identity = json.loads((out / "manifest.json").read_text())["identity"]
        (out / ".run.json").write_text(json.dumps(identity))
        (out / "manifest.json").unlink()
    for name in former:
        monkeypatch.setitem(FORMER, load(getattr(tiny_models, name)).fingerprint, FormerModel(f"model {name}", "0.0.9", f"there/{name}"))
    before = tree(out)
    config = GenerateConfig.model_validate(tiny_config(out, made[1]) | {"trajectories": 20 if state == "growing" else 10})
    said = []
    for run in (lambda: generate_dataset(config, maker=InThisProcess(CPU)), lambda: standing(config, CPU)):
        with pytest.raises(InputError) as caught:
            run()
        said.append(str(caught.value))
    assert said[0] == said[1]
    names = " and ".join(f"model {name}" for name in former)
    wanted = f"was made with the embedded {names} of tsdfm-pipeline 0.0.9" if former else "another config"
    assert wanted in said[0]
    assert ("--teacher, --compass" if former else "teacher.fingerprint (there ") in said[0]
    assert ("trajectories (there 10, here 20)" in said[0]) == (state == "growing")
    assert {path: sha for path, sha in tree(out).items() if path in before} == before
