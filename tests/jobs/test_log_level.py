"""`--log-level`: what is written to standard error, before and after the command's name; results are not touched."""

import logging
import re

import pytest

from tests.support import copy_dataset
from tsdfm.jobs.shell import console
from tsdfm.jobs.shell.console import LEVELS, Ticker, logged, say, set_log_level


@pytest.fixture
def data(tmp_path, tiny_models):
    copy_dataset(tmp_path / "out", tiny_models)
    return tmp_path / "out"


@pytest.mark.parametrize("where", ["before", "after"])
def test_results_are_printed_whatever_the_level_and_progress_only_from_info_on(cli, data, where):
    for level in LEVELS:
        flag = ["--log-level", level]
        outcome = cli(*flag, "verify", data) if where == "before" else cli("verify", data, *flag)
        assert outcome.code == 0
        assert "sound" in outcome.stdout
        assert ("3/3" in outcome.stderr) == (level in ("info", "debug"))
        assert outcome.stderr or level not in ("info", "debug")
    assert "Error: Invalid value for '--log-level'" in cli("verify", data, "--log-level", "loud").stderr


def test_an_error_is_its_line_at_every_level_and_debug_tells_where(cli, tmp_path):
    for level in LEVELS:
        outcome = cli("verify", tmp_path / "none", "--log-level", level)
        assert outcome.code == 2
        lines = outcome.stderr.splitlines()
        assert lines[-1].startswith("Error: ")
        assert ("Traceback (most recent call last)" in outcome.stderr) == (level == "debug")
        assert level == "debug" or len(lines) == 1


def test_records_of_this_package_are_lines_and_those_of_libraries_only_at_debug(capsys):
    ours, theirs = logging.getLogger("tsdfm.pipeline.x"), logging.getLogger("some.library")
    before = logging.getLogger().handlers[:], logging.getLogger().level, logging.getLogger("tsdfm").level
    for level, said in (("warning", ["Warning: amiss at s3://bucket/out"]), ("info", ["Warning: amiss at s3://bucket/out", "as usual"]),
                        ("debug", ["Warning: amiss at s3://bucket/out", "as usual", "in detail", "some.library: at work"])):
        with logged():
            set_log_level(level)
            ours.warning("amiss at %s", "s3://KEY:SECRET@bucket/out")
            ours.info("as usual")
            ours.debug("in detail")
            theirs.info("at work")
            theirs.debug("in detail")
        assert capsys.readouterr().err.splitlines() == said
    assert before == (logging.getLogger().handlers, logging.getLogger().level, logging.getLogger("tsdfm").level)


def test_a_plain_line_tells_rate_and_remaining_time(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with logged():
        ticking = Ticker("pretrain", None)
        ticking.update(0, 400, "loss 5.0")
        ticking.started -= 10
        ticking._first = (0, ticking.started)
        ticking.update(100, 400, "loss 4.0")
        ticking.update(400, 400, "loss 3.0")
        say("done")
    first, second, last, _ = capsys.readouterr().err.splitlines()
    assert "/s" not in first
    assert re.fullmatch(r"pretrain: 100/400  loss 4.0  0:10, (10|10.0|9.9)/s, ETA 0:30", second)
    assert re.fullmatch(r"pretrain: 400/400  loss 3.0  0:10, (40|39)/s", last)
