"""`inspect` as a user meets it: tables, a text forming, a page, JSON, and every wrong input in one line."""

import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.inspection_data import dataset, logs_of
from tests.support import present
from tsdfm.jobs.inspect.command import inspect_command
from tsdfm.jobs.inspect.tables import FRAMES_SHOWN
from tsdfm.pipeline.dataset.frames import frames
from tsdfm.pipeline.dataset.manifest import read_vocabulary
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.schemas.base import InputError
from tsdfm.schemas.summary import DatasetSummary


@pytest.fixture(scope="module")
def paired(tmp_path_factory, tiny_models):
    return dataset("mask", tmp_path_factory.mktemp("data") / "out", tiny_models)


@pytest.fixture(scope="module")
def blind(tmp_path_factory, tiny_models):
    return dataset("blind", tmp_path_factory.mktemp("data") / "out", tiny_models)


def run(store, *arguments):
    result = CliRunner().invoke(inspect_command, [store.uri, *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def refusal(store, *arguments):
    result = CliRunner().invoke(inspect_command, [store.uri, *map(str, arguments)])
    assert isinstance(result.exception, InputError)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def data_of(page):
    return json.loads(present(re.search(r'<script type="application/json" id="data">(.*?)</script>', page))[1])


def rows_of(page):
    return [(log["id"], log["arm"]) for log in data_of(page)["logs"]]


def test_json_is_the_summary(paired):
    store, _ = paired
    report = json.loads(run(store, "--json").stdout)
    assert report.pop("out") == store.uri
    assert DatasetSummary.model_validate(report) == summarise(store)


def test_tables_show_the_figures(paired):
    store, _ = paired
    summary, result = summarise(store), run(store)
    for arm in summary.arms:
        energy = present(arm.final_energy)
        assert f"{energy.mean:.4f} ± {energy.deviation:.4f}" in result.stdout
        assert f"{arm.distinct_2:.4f}" in result.stdout
    pairs = present(summary.pairs)
    assert f"{pairs.mean_difference:+.4f} ± {pairs.standard_error:.4f}" in result.stdout
    for times, choices in zip(summary.bins, present(summary.selection).bins, strict=True):
        name = f"{times.t_start:.3f}-{times.t_end:.3f}"
        [line] = [line for line in result.stdout.splitlines() if name in line]
        if choices.gain is not None:
            assert f"{choices.gain:.4f}" in line
    for name in summary.size.column_bytes_per_token:
        assert re.search(rf"\b{name} ", result.stdout)
    assert "…" not in result.stdout  # nothing is cut at 80 columns


def test_tables_do_without_a_compass(blind):
    store, _ = blind
    result = run(store)
    assert "final energy, nats/token" in result.stdout
    assert "paired" not in result.stdout
    assert "candidate" not in result.stdout.replace("event_candidates", "")


@pytest.mark.parametrize("arm", ["shaped", "blind"])
def test_one_arm_of_the_summary(paired, arm):
    store, _ = paired
    whole, part = (json.loads(run(store, "--json", *more).stdout) for more in ((), ("--arm", arm)))
    assert part["arms"] == [each for each in whole["arms"] if each["arm"] == arm]
    assert part["pairs"] is None
    assert part["selection"] == (whole["selection"] if arm == "shaped" else None)


def test_a_trajectory_forms_in_the_terminal(paired):
    store, manifest = paired
    [log] = [log for log in logs_of(store, manifest, "shaped") if log.trajectory_id == 4]
    pictures = frames(log, read_vocabulary(store, manifest), manifest.identity.grid)
    shown = run(store, "--trajectory", 4, "--arm", "shaped").stdout
    headers = [line for line in shown.splitlines() if line.startswith("step ")]
    assert len(headers) == min(FRAMES_SHOWN, len(pictures))
    by_step = {frame.step + 1: frame for frame in pictures}
    steps = [int(present(re.match(r"step (\d+)/37 ", line))[1]) for line in headers]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (pictures[0].step + 1, pictures[-1].step + 1)
    for step, header in zip(steps, headers, strict=True):
        frame = by_step[step]
        assert f"{len(frame.changed)} written" in header
        assert (f"{sum(frame.masked)} masked" in header) == any(frame.masked)
        if frame.energies is not None:
            marks = ["✓" if k == frame.choice else " " for k in range(3)]
            marked = " ".join(f"{marks[k]}{k}: {frame.energies[k]:.4f}" for k in range(3))
            assert f"energies  {marked}" in shown
    assert f"final energy {log.final_energy:.4f}" in shown


def test_both_arms_are_shown_unless_one_is_asked_for(paired):
    store, _ = paired
    shown = run(store, "--trajectory", 0).stdout
    assert shown.index("trajectory 0, shaped arm") < shown.index("trajectory 0, blind arm")
    assert "shaped arm" not in run(store, "--trajectory", 0, "--arm", "blind").stdout


def test_json_of_a_trajectory_is_all_its_frames(paired):
    store, manifest = paired
    vocab, grid = read_vocabulary(store, manifest), manifest.identity.grid
    report = json.loads(run(store, "--trajectory", 6, "--json").stdout)
    assert [each["trajectory_id"] for each in report["trajectories"]] == [6, 6]
    assert [each["arm"] for each in report["trajectories"]] == ["shaped", "blind"]
    for each in report["trajectories"]:
        [log] = [log for log in logs_of(store, manifest, each["arm"]) if log.trajectory_id == 6]
        assert each["text"] == vocab.decode(log.tokens.tolist())
        assert each["frames"] == [vars(frame) for frame in frames(log, vocab, grid)]


def test_text_cannot_steer_the_terminal(tmp_path, tiny_models):
    """Random weights write every byte, escape among them; none but line breaks may reach the terminal."""
    store, manifest = dataset("uniform", tmp_path / "out", tiny_models)
    vocab = read_vocabulary(store, manifest)

    def controls(text):
        return [c for c in text if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0]

    assert any(controls(vocab.decode(log.tokens.tolist())) for log in logs_of(store, manifest, "shaped"))
    for number in range(10):
        assert not controls(run(store, "--trajectory", number).stdout)


def test_a_page_of_the_first_trajectories(paired, tmp_path):
    store, _ = paired
    file = tmp_path / "page.html"
    report = json.loads(run(store, "--html", file, "--json").stdout)
    assert report == {"out": store.uri, "html": str(file), "trajectories": [0, 1, 2, 3, 4, 5, 6]}
    assert rows_of(file.read_text()) == [(number, arm) for number in range(7) for arm in ("shaped", "blind")]


def test_a_page_of_one_trajectory_has_all_its_arms(paired, tmp_path):
    store, _ = paired
    file = tmp_path / "page.html"
    run(store, "--trajectory", 5, "--html", file)
    assert rows_of(file.read_text()) == [(5, "shaped"), (5, "blind")]
    run(store, "--trajectory", 5, "--arm", "blind", "--html", file)
    assert rows_of(file.read_text()) == [(5, "blind")]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("number", [7, -1])
@pytest.mark.parametrize("more", [[], ["--html", "page.html"]])
def test_an_unknown_trajectory_names_the_range(paired, tmp_path, monkeypatch, number, more):
    monkeypatch.chdir(tmp_path)
    assert "holds 0..6" in refusal(paired[0], "--trajectory", number, *more)
    assert not list(tmp_path.iterdir())


def test_a_page_in_a_missing_folder_is_refused(paired, tmp_path):
    file = tmp_path / "missing" / "page.html"
    assert str(file) in refusal(paired[0], "--html", file)
    assert "make the folder" in refusal(paired[0], "--html", tmp_path)  # a folder is no file


@pytest.mark.parametrize("more", [[], ["--trajectory", "0"], ["--html", "page.html"]])
def test_an_absent_arm_is_refused(blind, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    message = refusal(blind[0], "--arm", "shaped", *more)
    assert "holds only the blind arm" in message
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    result = CliRunner().invoke(inspect_command, [str(tmp_path / "nothing")])
    assert "no dataset there" in str(result.exception)


def test_help_loads_nothing_heavy():
    code = ("import sys, tsdfm.jobs.inspect.command; "
            "print([m for m in ('torch', 'ray', 'pyarrow', 'numpy', 'tokenizers') if m in sys.modules])")
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "[]\n"
