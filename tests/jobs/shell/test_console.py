"""Progress on a terminal: what a bar shows is what was done of what there is."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest
import yaml
from rich.console import Console

from tests.support import copy_dataset
from tsdfm.jobs.shell import console
from tsdfm.jobs.shell.console import Ticker, figures_table, print_whole, rate

COMMAND = [sys.executable, "-m", "tsdfm.jobs"]


def on_a_terminal(*arguments: object) -> str:
    """What a command of ours writes to a pseudo-terminal."""
    return terminal([*COMMAND, *map(str, arguments)], 120)


def terminal(command: list[str], columns: int) -> str:
    """What a program writes to a pseudo-terminal of so many columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs,
                               env=os.environ | {"COLUMNS": str(columns), "TERM": "xterm"})
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0, seen.decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


@pytest.mark.parametrize("arguments", [("verify",), ("inspect", "--counterfactual"), ("inspect",)])
def test_bars_count_to_their_total(tmp_path, tiny_models, arguments):
    copy_dataset(tmp_path / "out", tiny_models)
    command, *flags = arguments
    shown = on_a_terminal(command, tmp_path / "out", *flags)
    counts = {(int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+) ", shown)}
    assert (3, 3) in counts
    assert all(done <= total for done, total in counts), counts


def test_a_table_is_one_row_a_line_at_80_columns(capsys):
    """A wide table stands in parts, each of which tells the rows apart; nothing is cut."""
    table = figures_table("Figures", ["model", "steps", *(f"perplexity under judge {n}" for n in range(4)), "entropy"])
    for row in range(3):
        table.add_row("a model", str(row), *(f"{row}{n}.1 (50.2-60.3)" for n in range(4)), f"5.{row}")
    print_whole(table, keys=2)
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in shown.out
    for row in range(3):
        mine = [line for line in lines if line.split()[:3] == ["a", "model", str(row)]]
        assert len(mine) == 3
        assert all(f"{row}{n}.1 (50.2-60.3)" in " ".join(mine) for n in range(4))


@pytest.mark.parametrize("columns", [0, 1, 20])
def test_no_figure_is_cut_however_narrow_the_terminal(columns, monkeypatch, capsys):
    """Some CI says that it has 0 columns: every table was empty, with exit code 0."""
    monkeypatch.setattr(console, "results", Console(highlight=False, soft_wrap=True, width=columns))
    table = figures_table("Figures", ["model", "perplexity", "entropy"])
    table.add_row("a model of a long name", "1,945 (1,306-2,698)", "5.523")
    print_whole(table)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(cell in shown for cell in ("a model of a long name", "1,945 (1,306-2,698)", "5.523"))


def test_a_name_is_told_as_it_is_and_steers_nothing(capsys):
    """A model's folder may be called anything; brackets in a cell were taken for a style, and left out."""
    name = "w [bold]x[/] \x1b[31m\ny"
    table = figures_table(f"Bounds of {name}", ["model", "perplexity"])
    table.add_row(name, "1")
    print_whole(table)
    assert capsys.readouterr().out.count("w [bold]x[/] ␛[31m y") == 2


def test_a_name_with_a_line_break_is_told_in_one_line(capsys):
    console.say("runs/a\nb\x1b[2J: trained")
    assert capsys.readouterr().err == "runs/a b␛[2J: trained\n"


def test_a_standard_stream_that_is_closed_keeps_nothing_from_being_written(tmp_path, tiny_models):
    """Under cron, `2>&-`: the results were lost, and the next file that was opened got the number of standard error."""
    copy_dataset(tmp_path / "out", tiny_models)
    code = "from tsdfm.jobs.start import main; main()"
    shell = 'exec "$0" -c "$1" inspect "$2" --json <&- 2>&- >"$3"'
    done = subprocess.run(["sh", "-c", shell, sys.executable, code, str(tmp_path / "out"), str(tmp_path / "figures")], check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "figures").read_text())["out"] == str(tmp_path / "out")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_standard_output_lacks_are_told_otherwise(encoding):
    """In JSON and YAML as these write them, so that they are the same when they are read."""
    code = """if True:
        import sys
        from tsdfm.jobs.start import _open_streams
        _open_streams()
        from tsdfm.jobs.shell.console import emit, tell
        from tsdfm.jobs.shell.options import yaml_of
        from tsdfm.schemas.sample import SampleConfig
        config = SampleConfig(prompt="\\u2019")
        tell(config.prompt)
        emit(config)
        sys.stdout.write(yaml_of(config))
    """
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": encoding}, check=True, capture_output=True)
    told, line, *text = done.stdout.decode("ascii").splitlines()
    assert told == "\\u2019"
    assert json.loads(line)["prompt"] == yaml.safe_load("\n".join(text))["prompt"] == "\u2019"


@pytest.mark.parametrize(("number", "seconds", "told"), [
    (0, 10, "0.0 texts/h"), (3, 3600, "3.0 texts/h"), (41, 60, "41 texts/min"), (2, 1, "2.0 texts/s"), (5000, 1, "5,000 texts/s")])
def test_rates_can_be_read(number, seconds, told):
    assert rate(number, seconds, "texts") == told


def test_what_is_waited_for_is_said_once_and_then_now_and_then(capsys, monkeypatch):
    ticking = Ticker("making shards", None)
    for _ in range(5):
        ticking.waiting(0, 4, "waiting for 1 CPU: the cluster has 0 free")
    assert capsys.readouterr().err.splitlines() == ["making shards: 0/4  waiting for 1 CPU: the cluster has 0 free"]
    monkeypatch.setattr(console, "WAIT_SECONDS", 0.0)
    ticking.waiting(0, 4, "waiting for 1 CPU: the cluster has 0 free")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_remaining_time_is_told_from_the_first_unit_on(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    ticking = Ticker("making shards", None)
    ticking.update(0, 4)
    ticking.started -= 10
    ticking._first = (0, ticking.started)
    ticking.update(1, 4)
    first, second = capsys.readouterr().err.splitlines()
    assert "ETA" not in first
    assert "ETA 0:30" in second


def test_the_bar_is_there_at_80_columns_whatever_the_note():
    code = ("from tsdfm.jobs.shell.console import ticker\n"
            "with ticker('distill') as show: show.update(3, 9000, 'loss 5.123  (' + '  '.join(f'1/{n}: 4.56' for n in range(9)) + ')')")
    shown = terminal([sys.executable, "-c", code], 80)
    assert "━" in shown
    assert "3/9000" in shown
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", shown))
