"""The card of a folder: `datasets` reads every config that it names, and a reader finds what the lists of a row need."""

import re
from pathlib import Path

import pytest

from tests.support import make_dataset
from tsdfm.pipeline.dataset.card import dataset_card, read_front_matter

README = Path(__file__).parents[3] / "schemas" / "README.md"
# kind -> what differs from a mask source and both arms; config -> (split -> arms of its rows)
KINDS = {
    "both": ({}, {"default": {"train": {"shaped", "blind"}}, "shaped": {"train": {"shaped"}}, "blind": {"train": {"blind"}}}),
    "shaped": ({"arm": "shaped"}, {"default": {"train": {"shaped"}}, "shaped": {"train": {"shaped"}}, "arms": {"shaped": {"shaped"}}}),
    "blind": ({"arm": "blind", "compass": "none"}, {
        "default": {"train": {"blind"}}, "blind": {"train": {"blind"}}, "arms": {"blind": {"blind"}}}),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from datasets import load_dataset

    return lambda *arguments, **more: load_dataset(*arguments, cache_dir=str(tmp_path / "cache"), **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_config_of_the_card_is_read_by_datasets(tmp_path, tiny_models, load, kind):
    changes, configs = KINDS[kind]
    out = tmp_path / "out"
    manifest = make_dataset(out, tiny_models, **changes)
    assert {each["config_name"] for each in read_front_matter((out / "README.md").read_text())["configs"]} == set(configs)
    each = manifest.identity.trajectories
    for config, splits in configs.items():
        found = load(str(out), config)
        assert {split: set(rows["arm"]) for split, rows in found.items()} == splits
        for split, arms in splits.items():
            assert sorted(set(found[split]["trajectory_id"])) == list(range(each))
            assert found[split].num_rows == each * len(arms)
            streamed = load(str(out), config, split=split, streaming=True)
            assert [(row["trajectory_id"], row["arm"]) for row in streamed] == list(
                zip(found[split]["trajectory_id"], found[split]["arm"], strict=True))
    assert load(str(out), split="train").num_rows == manifest.totals.rows


@pytest.mark.parametrize(("source", "mask"), [("mask", "| mask id | 299 |"), ("uniform", "| mask id | none: no position is ever masked |")])
def test_the_card_holds_what_the_lists_of_a_row_need(tmp_path, tiny_models, source, mask):
    manifest = make_dataset(tmp_path / "out", tiny_models, teacher=str(getattr(tiny_models, source)), rollout={"steps": 8, "top_k": 2})
    text, grid = dataset_card(manifest), manifest.identity.grid
    assert read_front_matter(text)["trajectories"] == {
        "source": source, "tokens": grid.length, "steps": 8, "candidates": grid.candidates, "shaped_steps": len(grid.shaped_steps),
        "top_k": 2, "vocabulary": grid.vocab_size, "mask_id": grid.mask_id}
    for line in (f"| L | {grid.length} |", "| N | 8 |", f"| K | {grid.candidates} |", "| k | 2 |", f"| V | {grid.vocab_size} |", mask):
        assert line in text
    assert "may be NaN" in text
    assert ("null in every row" in text) == (source == "mask")
    assert ("E differs from row to row" in text) == (source == "uniform")


def test_a_dataset_in_which_nothing_was_chosen_says_so(tmp_path, tiny_models):
    manifest = make_dataset(tmp_path / "out", tiny_models, arm="blind", compass="none")
    assert read_front_matter(dataset_card(manifest))["trajectories"]["shaped_steps"] == 0


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_the_recipe_of_the_readme_collates_any_rows(tmp_path, tiny_models, load, monkeypatch, source):
    """Of both sources, of one arm or two in a batch; what was padded can be told from what was not."""
    monkeypatch.chdir(tmp_path)
    manifest = make_dataset("OUT", tiny_models, teacher=str(getattr(tiny_models, source)))
    [recipe] = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "def collate" in block]
    room = {"shaped": load("OUT", "shaped", split="train")}
    exec(recipe, room)
    grid, rows = manifest.identity.grid, list(room["shaped"])
    batch = room["collate"](rows)
    assert batch["tokens"].shape == batch["source"].shape == (len(rows), grid.length)
    assert batch["step_energy"].shape == (len(rows), len(grid.shaped_steps), grid.candidates)
    state = batch["source"].clone()
    for event in range(batch["event_step"].shape[1]):
        for row in range(len(rows)):
            if batch["event_step"][row, event] >= 0:
                state[row, batch["event_position"][row, event]] = batch["event_token"][row, event]
    assert (state == batch["tokens"]).all()
    assert [int((steps >= 0).sum()) for steps in batch["event_step"]] == [len(row["event_step"]) for row in rows]
    mixed = list(load("OUT", split="train"))
    batch = room["collate"](mixed)
    for row, candidates, energies in zip(mixed, batch["event_candidates"], batch["step_energy"], strict=True):
        assert candidates[candidates >= 0].tolist() == row["event_candidates"]
        assert candidates.shape[1] == energies.shape[1] == grid.candidates
        kept = [energy for energy in row["step_energy"] if energy == energy]
        assert energies[~energies.isnan()].tolist() == pytest.approx(kept)
