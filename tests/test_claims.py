"""The arithmetic behind the README's claims: from results of `evaluate` to rows, verdicts, figure and section."""

import importlib.util
import math
from pathlib import Path

import pytest

from tests.support import present

FILE = Path(__file__).parent / "benchmarks" / "claims_table.py"


@pytest.fixture
def table():
    spec = present(importlib.util.spec_from_file_location("claims_table", FILE))
    module = importlib.util.module_from_spec(spec)
    present(spec.loader).exec_module(module)
    return module


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


def test_the_section_replaces_itself_and_nothing_else(table, results, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "README", page)
    monkeypatch.setattr(table, "FIGURE", tmp_path / "beside.png")
    figures = table.collect(results, (0, 1, 2), ("mask",))
    settings = {"samples": 9, "trajectories": 5, "rollout_steps": 8, "candidates": 8, "objective": "event", "updates": 7,
                "batch_size": 2, "seeds": (0, 1, 2)}
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


def test_the_readme_has_the_marks(table):
    text = table.README.read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1
