"""Fixtures of all tests."""

import os

import pytest

from tests.support import Outcome, TinyModels, make_models

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # tests start clusters on loopback only, and write no token to HOME


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: cli('verify', OUT) -> Outcome."""
    from tsdfm.jobs.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["tsdfm-pipeline", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
