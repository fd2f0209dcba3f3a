"""`inspect --counterfactual` as a user meets it: tables, JSON, what it cannot answer, and every wrong use in one line."""

import json

import pytest

from tests.support import assert_refused, copy_dataset, make_dataset, present
from tsdfm.pipeline.evaluation.counterfactual import counterfactual
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.counterfactual import Counterfactual


@pytest.fixture(scope="module")
def out(tmp_path_factory, tiny_models):
    folder = tmp_path_factory.mktemp("data") / "out"
    copy_dataset(folder, tiny_models)
    return folder


def test_json_is_the_answer(out, cli):
    outcome = cli("inspect", out, "--counterfactual", "--json")
    assert outcome.code == 0
    report = json.loads(outcome.stdout)
    assert report.pop("out") == str(out)
    assert Counterfactual.model_validate(report) == counterfactual(open_store(str(out)))


def test_tables_show_the_figures_and_their_limits(out, cli):
    outcome = cli("inspect", out, "--counterfactual")
    found = counterfactual(open_store(str(out)))
    assert outcome.code == 0
    assert max(map(len, outcome.stdout.split("Other rules")[0].splitlines()[2:])) <= 80
    for row in found.fewer:
        lines = [line for line in outcome.stdout.partition("Other rules")[0].splitlines() if line.split()[:1] == [str(row.candidates)]]
        assert lines[0].split()[1] == str(row.scored)
        line = " ".join(lines)
        for estimate in map(present, (row.first_step, row.first_step_any, row.all_steps, row.all_steps_any)):
            assert f"{estimate.mean:.4f} ± {present(estimate.high) - estimate.mean:.4f}" in line
    for words in ("1.96 standard errors over trajectories", "one-step answers", "would meet other states",
                  "argmin of 4", "beta 64", "earns most at t ="):
        assert words in outcome.stdout
    assert "RK-4" not in outcome.stdout


def test_rk4_is_called_inexact(tmp_path, tiny_models, cli):
    make_dataset(tmp_path / "out", tiny_models, trajectories=2, rollout={"steps": 4, "solver": "rk4"})
    assert "RK-4" in cli("inspect", tmp_path / "out", "--counterfactual").stdout


@pytest.mark.parametrize("more", [("--trajectory", 0), ("--arm", "shaped"), ("--html", "page.html")])
def test_it_goes_with_no_other_question(out, cli, more):
    assert_refused(cli("inspect", out, "--counterfactual", *more), "--counterfactual", "leave out")


def test_a_blind_dataset_is_refused(tmp_path, tiny_models, cli):
    make_dataset(tmp_path / "out", tiny_models, trajectories=2, arm="blind", compass="none")
    assert_refused(cli("inspect", tmp_path / "out", "--counterfactual"), "no choices among candidates", "--arm")


def test_no_dataset_is_refused(tmp_path, cli):
    assert_refused(cli("inspect", tmp_path / "none", "--counterfactual"), "none")
