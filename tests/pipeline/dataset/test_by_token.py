"""A dataset whose tokens were chosen one by one, from the command that makes it to all that reads it."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import make_dataset, present, tiny_config, tree
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.frames import frames
from tsdfm.pipeline.dataset.manifest import read_manifest, read_shard, read_vocabulary
from tsdfm.pipeline.dataset.player import player_page
from tsdfm.pipeline.dataset.summary import read_trajectories, summarise
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.evaluation.counterfactual import counterfactual
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.loader.windows import Trajectories
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError
from tsdfm.schemas.choices import choices_of
from tsdfm.schemas.generate import GenerateConfig

CHANGES: dict[str, dict[str, Any]] = {
    "argmin": {"shaping": {"candidates": 4, "level": "token"}, "rollout": {"steps": 6, "batch_size": 4, "logprobs": True}},
    "resample": {"shaping": {"candidates": 3, "level": "token", "select": "resample", "beta": 30.0},
                 "rollout": {"steps": 6, "batch_size": 4}},
    "sweeps": {"shaping": {"candidates": 4, "level": "token", "sweeps": 2}, "rollout": {"steps": 4, "batch_size": 4}},
    "both": {"shaping": {"candidates": 4, "level": "sequence_to_token", "tau": 0.2}, "rollout": {"steps": 6, "batch_size": 4}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    root = tmp_path_factory.mktemp("made")
    for name, changes in CHANGES.items():
        make_dataset(root / name, tiny_models, **changes)
    return {name: open_store(str(root / name)) for name in CHANGES}


def shaped(store):
    manifest = read_manifest(store)
    tables = [read_shard(store, record) for record in manifest.shards]
    parts = [table.filter(np.asarray(table.column("arm").to_pylist()) == "shaped") for table in tables]
    return manifest, parts, [shards.to_log(part, row) for part in parts for row in range(part.num_rows)]


def choices_by_loop(log, grid):
    """(step, position or -1, energies in nats per token, choice) of every choice that was met."""
    found = []
    for event, (step, position) in enumerate(zip(log.event_step.tolist(), log.event_position.tolist(), strict=True)):
        if step in grid.token_steps:
            found.append((step, position, log.event_energy[event] / grid.length, int(log.event_choice[event])))
        elif step in grid.shaped_steps and (not found or found[-1][0] != step):
            slot = grid.shaped_steps.index(step)
            found.append((step, -1, log.step_energy[slot], int(log.step_choice[slot])))
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_it_verifies_and_says_what_it_is(made, name):
    manifest, faults = verify(made[name])
    assert faults == []
    assert manifest.format_version == 2
    grid = manifest.identity.grid
    assert manifest.token_steps == list(grid.token_steps) != []
    assert manifest.shaped_steps == list(grid.shaped_steps) == ([2] if name == "both" else [])
    assert "event_choice" in present(made[name].read("README.md")).decode()


@pytest.mark.parametrize("name", CHANGES)
def test_its_choices_as_flat_arrays(made, name):
    manifest, parts, logs = shaped(made[name])
    first = 0
    for part in parts:
        found = choices_of(part, manifest.identity.grid)
        wanted = [(row, *choice) for row, log in enumerate(logs[first : first + part.num_rows])
                  for choice in choices_by_loop(log, manifest.identity.grid)]
        first += part.num_rows
        assert [(r, s, p) for r, s, p, *_ in wanted] == list(zip(
            found.row.tolist(), found.step.tolist(), found.position.tolist(), strict=True))
        np.testing.assert_allclose(found.energy, [energy for *_, energy, _ in wanted], rtol=1e-6)
        assert found.choice.tolist() == [choice for *_, choice in wanted]


@pytest.mark.parametrize("name", CHANGES)
def test_its_summary(made, name):
    manifest, _, logs = shaped(made[name])
    found = present(summarise(made[name]).selection).total
    choices = [choice for log in logs for choice in choices_by_loop(log, manifest.identity.grid)]
    scored = [(energy, kept) for *_, energy, kept in choices if np.isfinite(energy).all()]
    assert (found.shaped, found.scored) == (len(choices), len(scored))
    assert found.kept_blind_share == pytest.approx(np.mean([kept == 0 for _, kept in scored]))
    assert found.gain == pytest.approx(np.mean([energy[0] - energy[kept] for energy, kept in scored]), rel=1e-5)
    assert (found.chosen_energy is None) == (name == "both")


@pytest.mark.parametrize("name", ["argmin", "resample", "sweeps"])
def test_its_own_rule_replays_exactly(made, name):
    """All K candidates, the run's rule and its noise: nothing changes; and fewer candidates at the first step is exact."""
    found = counterfactual(made[name])
    assert found.fewer[-1].changed.mean == 0
    assert found.exact_first_step == (name != "sweeps")
    other = [rule for rule in found.rules if rule.rule == "argmin"]
    assert (other[0].changed.mean == 0) == (name != "resample")


def test_fewer_candidates_at_the_first_step_are_what_another_run_records(made, tmp_path, tiny_models):
    changes = {**CHANGES["argmin"], "shaping": {**CHANGES["argmin"]["shaping"], "candidates": 2}}
    make_dataset(tmp_path / "out", tiny_models, **changes)
    manifest, _, logs = shaped(open_store(str(tmp_path / "out")))
    kept = []
    for log in logs:
        choices = [choice for choice in choices_by_loop(log, manifest.identity.grid) if np.isfinite(choice[2]).all()]
        kept += [energy[choice] for step, _, energy, choice in choices if step == choices[0][0]]
    found = next(row for row in counterfactual(made["argmin"]).fewer if row.candidates == 2)
    # at K = 4 more positions are scored: of those, the ones whose first two candidates agree keep candidate 0
    assert found.first_step.count >= len(kept)


def test_two_levels_have_no_common_mean(made):
    with pytest.raises(InputError, match="common mean"):
        counterfactual(made["both"])


@pytest.mark.parametrize("name", CHANGES)
def test_frames_and_page_show_every_positions_choice(made, name):
    store = made[name]
    manifest = read_manifest(store)
    grid, words = manifest.identity.grid, read_vocabulary(store, manifest)
    logs = read_trajectories(store, manifest, [3])
    for frame in frames(logs[0], words, grid):
        assert (frame.choices is not None) == (frame.step in grid.token_steps)
        for each, words_there in zip(frame.choices or [], frame.candidates, strict=False):
            assert (each.energies is None) == (len(set(words_there)) == 1) or each.energies is not None
    assert all(frame.choices is None for frame in frames(logs[1], words, grid))
    page = player_page(manifest, logs, words)
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0].replace("\\u003c", "<"))
    with_choices = [frame for frame in data["logs"][0]["frames"] if "choices" in frame]
    assert {frame["step"] for frame in with_choices} <= set(grid.token_steps)
    assert all(len(frame["choices"]) == len(frame["candidates"]) == len(frame["changed"]) for frame in with_choices)


def test_inspect_prints_them(cli, made):
    where = str(present(made["argmin"].local))
    shown = cli("inspect", where, "--trajectory", "0")
    assert shown.code == 0, shown.stderr
    assert "✓" in shown.stdout
    frame = json.loads(cli("inspect", where, "--trajectory", "0", "--json").stdout)["trajectories"][0]["frames"][0]
    assert len(frame["choices"]) == len(frame["changed"])


def test_weights_of_candidates_are_those_of_their_own_energies(made):
    manifest, parts, _ = shaped(made["both"])
    grid = manifest.identity.grid
    read = Trajectories.of(parts[0], grid, "shaped")
    rows = np.arange(len(read))
    batch = read.window(rows, np.zeros_like(rows), np.full_like(rows, grid.steps), "candidates", 64.0)
    for row in range(len(read)):
        log = shards.to_log(parts[0], row)
        for event, (step, position) in enumerate(zip(log.event_step.tolist(), log.event_position.tolist(), strict=True)):
            energy = np.zeros(4)
            if step in grid.token_steps:
                energy = present(log.event_energy)[event].astype(float) / grid.length
            elif step in grid.shaped_steps:
                energy = log.step_energy[grid.shaped_steps.index(step)].astype(float)
            wanted = torch.softmax(-64.0 * torch.from_numpy(np.nan_to_num(energy)), 0)
            torch.testing.assert_close(present(batch.weights)[row, position], wanted.float(), rtol=1e-4, atol=1e-6)


def test_a_run_that_was_cut_resumes_to_the_same_bytes(made, tmp_path, tiny_models):
    changes = tiny_config(tmp_path / "out", tiny_models) | CHANGES["sweeps"]
    config = GenerateConfig.model_validate(changes)
    generate_dataset(config, maker=InThisProcess(torch.device("cpu")))
    whole = tree(tmp_path / "out")
    assert whole == tree(made["sweeps"].local)
    (tmp_path / "out" / "data/train-00001-of-00003.parquet").unlink()
    generate_dataset(config, maker=InThisProcess(torch.device("cpu")))
    assert tree(tmp_path / "out") == whole
