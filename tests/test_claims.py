"""The arithmetic behind the claims: from results of `evaluate` to rows, verdicts, figure and section; and the page they stand on."""

import importlib
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from tests.support import present
from tsdfm.jobs.cli import cli

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("claims_table")


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("claims")


def row(model, steps, temperature, perplexity, entropy):
    """A row as `evaluate` gives it, under two judges of which the second sees ten times the perplexity."""
    judges = {name: {"perplexity": p, "low": 0.9 * p, "high": 1.1 * p, "tokens": 1}
              for name, p in (("embedded", perplexity), ("x/Smol.gguf", 10 * perplexity))}
    return {"model": model, "steps": steps, "temperature": temperature, "samples": 9, "nfe": steps and float(steps), "entropy_bits": entropy,
            "entropy_standard_error": 0.01, "distinct_2": 0.5, "distinct_4": 0.9, "self_bleu": 0.1, "judges": judges}


@pytest.fixture
def results():
    """A teacher of 200 at 1,024 steps, students of 100, 110 and 121, blind ones of 300, real text of entropy 5."""
    teacher = [row("embedded:mask", n, t, p * t**2, 5.2 - (1 - t)) for n, p in ((8, 400), (1024, 200)) for t in (0.6, 0.8, 1.0)]
    swept = [row(f"w/student-mask-{arm}-0", 8, t, p * t**2, 5.0 - (1 - t)) for arm, p in (("shaped", 100), ("blind", 300)) for t in (0.6, 0.8, 1.0)]
    seeds = [row(f"w/student-mask-{arm}-{seed}", 8, 1.0, p * 1.1**seed, 4.9) for arm, p in (("shaped", 100), ("blind", 300)) for seed in (1, 2)]
    return {"mask-teacher": {"rows": teacher, "reference": [row("python", None, None, 40, 5.0)]},
            "mask-students": {"rows": swept, "reference": []}, "mask-seeds": {"rows": seeds, "reference": []}}


SPEED = {"mask": {"every_step_ratio": 120.0, "skipping_ratio": 7.0}}


def concluded(table, results, speed=SPEED):
    return table.conclude(table.collect(results, (0, 1, 2), ("mask",)), speed)["mask"]


def test_the_reduction_is_of_the_geometric_mean_over_seeds(table, results):
    found = concluded(table, results)
    for judge, scale in (("embedded", 1), ("SmolLM2", 10)):
        said = found["judges"][judge]
        assert said["student"] == pytest.approx(110 * scale)
        assert said["student_worst_seed"] == pytest.approx(121 * scale)
        assert said["reduction"] == pytest.approx(0.45)
        assert said["reduction_met"]
        assert said["apart_from_blind"]  # 1.1 * 121 < 0.9 * 300
    assert found["entropy_floor"] == pytest.approx(4.85)
    assert found["student_entropy"] == 4.9
    assert found["entropy_met"]
    assert found["speed"]["met"]


@pytest.mark.parametrize(("fault", "field"), [("weak", "reduction_met"), ("overlap", "apart_from_blind")])
def test_a_target_that_is_missed_is_said_to_be(table, results, fault, field):
    for each in results["mask-seeds"]["rows"] + results["mask-students"]["rows"]:
        arm = each["model"].split("-")[2]
        if (fault, arm) in (("weak", "shaped"), ("overlap", "blind")):
            each["judges"]["embedded"] = {"perplexity": 140.0, "low": 126.0, "high": 154.0, "tokens": 1}
    found = concluded(table, results, {"mask": {"every_step_ratio": 99.0, "skipping_ratio": 7.0}})
    assert not found["judges"]["embedded"][field]
    assert not found["speed"]["met"]
    assert "not met" in table._verdicts("mask", found)[0]


def test_a_dull_student_misses_the_floor(table, results):
    for each in results["mask-seeds"]["rows"]:
        each["entropy_bits"] = 4.8
    found = concluded(table, results)
    assert not found["entropy_met"]
    assert "(i) not met" in table._verdicts("mask", found)[0]


def test_frontiers_are_read_at_equal_entropy(table, results):
    at = concluded(table, results)["judges"]["embedded"]["frontier"]["at_97"]
    assert at["teacher-8"] == pytest.approx(math.exp(math.log(400 * 0.36) * 0.75 + math.log(400 * 0.64) * 0.25))  # 4.85 of 4.8 .. 5.0
    assert at["shaped-8"] == pytest.approx(math.exp(math.log(64) * 0.75 + math.log(100) * 0.25))
    assert concluded(table, results)["judges"]["embedded"]["frontier"]["at_100"]["shaped-8"] == pytest.approx(100)


@pytest.mark.parametrize(("ratios", "verdict", "words"), [
    ([0.7, 0.9], "met", "10 to 30 % below"),
    ([0.7, 0.96], "not met", "4 to 30 % below"),
    ([0.97, 1.04], "a tie", "3 % below to 4 % above"),
    ([1.06, 1.2], "not met", "6 to 20 % above"),
    ([1.6, 2.1], "not met", "at 1.6 to 2.1 times the perplexity of"),
])
def test_what_equal_entropy_says(table, ratios, verdict, words):
    assert table._at_equal_entropy(ratios) == verdict
    assert table._beside(ratios) == words


def test_without_curves_equal_entropy_says_nothing(table):
    assert table._at_equal_entropy([]) == "not measured"


def test_the_answer_names_what_was_asked(table, results):
    found, figures = concluded(table, results), table.collect(results, (0, 1, 2), ("mask",))
    answer = table._answer(figures, "mask", found)
    assert answer.startswith("- **mask source: at equal entropy (ii) met, at temperature 1 (i) met, speed (iii) met.** Would a cooler teacher do as well?")
    assert "below its teacher in 1,024 steps by 45 % (embedded), 45 % (SmolLM2), where 32 % was asked under each" in answer
    shaped = [row["entropy_bits"] for row in figures if (row["who"], row["steps"], row["temperature"]) == ("shaped", 8, 1.0)]
    assert f"{sum(shaped) / len(shaped):.3f} bits of entropy (4.900 with the dullest training seed) against 5.200" in answer
    found["judges"]["embedded"]["frontier"]["at_97"]["shaped-8"] = found["judges"]["embedded"]["frontier"]["at_97"]["teacher-8"]
    assert "(ii) not met" in table._answer(figures, "mask", found)


def test_ratios_below_the_floor_of_entropy_do_not_count(table, results):
    found = concluded(table, results)
    before = len(table._ratios(found, "teacher-8"))
    for judge in found["judges"].values():
        judge["frontier"]["at_97"]["entropy"] = found["entropy_floor"] - 0.01
    assert len(table._ratios(found, "teacher-8")) == before - len(found["judges"])


def test_the_section_replaces_itself_and_nothing_else(table, results, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "README", page)
    monkeypatch.setattr(table, "FIGURE", tmp_path / "beside.png")
    figures = table.collect(results, (0, 1, 2), ("mask",))
    settings = {"samples": 9, "trajectories": 5, "rollout_steps": 8, "candidates": 8, "objective": "event", "updates": 7,
                "batch_size": 2, "seeds": (0, 1, 2), "judge_updates": 3}
    result = {"rows": figures, "settings": settings, "conclusion": table.conclude(figures, SPEED)}
    table.draw(figures, tmp_path / "claims.png")
    table.publish(table.markdown(result), tmp_path / "claims.png", result)
    once = page.read_text()
    assert once.startswith("before\n" + table.BEGIN)
    assert once.endswith(table.END + "\nafter\n")
    assert "old" not in once
    assert "| mask | **student from shaped** | 8 | 110.0 [100.0-121.0] | 1100.0 [1000.0-1210.0] |" in once
    assert "| mask | real held-out text |  | 40.0 (36.0-44.0) |" in once
    table.publish(table.markdown(result), tmp_path / "claims.png", result)
    assert page.read_text() == once
    assert (tmp_path / "beside.png").read_bytes().startswith(b"\x89PNG")


def page_of(table):
    return table.README.read_text()


def test_the_page_says_what_the_recorded_results_say(table):
    page = page_of(table)
    assert page.count(table.BEGIN) == page.count(table.END) == 1
    recorded = json.loads(table.FIGURE.with_suffix(".json").read_text())
    section = page[page.index(table.BEGIN):page.index(table.END) + len(table.END)]
    assert section == table.markdown(recorded), "tests/benchmarks/README.md was edited between the marks, or claims_table.py changed"
    assert recorded["conclusion"] == table.conclude(recorded["rows"], recorded["speeds"])


def test_criteria_stand_before_they_are_used(table):
    page = page_of(table)
    for criterion in ("(i)", "(ii)", "(iii)"):
        assert page.index(criterion) == page.index(f"- **{criterion}** ") + len("- **")


def test_the_page_names_files_and_options_that_exist(table):
    page = page_of(table)
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (BENCHMARKS / link).exists(), link
    for script, options in re.findall(r"`python\s+(tests/[a-z_/]+\.py)([^`]*)`", page):
        source = (BENCHMARKS.parents[1] / script).read_text()
        for option in re.findall(r"--[a-z-]+", options):
            assert f'"{option}"' in source, (script, option)


def options_of(command):
    found = present(cli.get_command(click.Context(cli), command))
    return {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_the_commands_of_the_page_use_options_that_exist(table):
    lines = [line.split("#")[0].split() for block in re.findall(r"```sh\n(.*?)```", page_of(table), re.DOTALL) for line in block.splitlines()]
    assert lines
    for _, command, *words in lines:
        assert {word for word in words if word.startswith("-")} <= options_of(command), command


def test_the_claims_commands_use_options_that_exist(claims, tmp_path, monkeypatch):
    runner_of: Any = claims.Runner

    class Planner(runner_of):  # type: ignore[misc]
        def run(self, *arguments):
            self.commands.append(shlex.join(map(str, arguments)))
            return {}

    monkeypatch.setattr(claims, "fetch", lambda folder: folder / "judge.gguf")
    runner, settings = Planner(tmp_path), claims.Settings()
    claims.make_data(runner, settings)
    claims.make_models(runner, settings)
    runner.together(list(claims.evaluations(runner, settings).values()))
    assert len(runner.commands) == 2 + 1 + 2 * 2 * 3 + 2 * 5
    for line in runner.commands:
        command, *words = shlex.split(line)
        assert {word for word in words if word.startswith("-")} <= options_of(command), line


def test_the_small_judge_is_the_one_that_the_page_describes(table, claims):
    shape = claims.small_judge(claims.Settings())["shape"]
    assert f"{shape['n_blocks']} blocks, {shape['hidden_size']} wide" in table.JUDGES["small"]
