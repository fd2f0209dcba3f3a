"""The wheel, in a clean environment outside the checkout, generates and verifies."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_works_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run([*build, f"--config-setting=--build-option=--bdist-dir={tmp_path / 'bdist'}"], check=True, capture_output=True)
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    # The dependencies come from this environment by a path file; the project itself only from the wheel.
    site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                               capture_output=True, text=True).stdout.strip())
    wheel = next((tmp_path / "dist").glob("*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = environment / "bin" / "tsdfm-pipeline"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}

    def run(*arguments: str) -> str:
        result = subprocess.run([command, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = subprocess.run([python, "-c", "import tsdfm.pipeline.flow.rollout as m; print(m.__file__)"], cwd=tmp_path, env=clean,
                           check=True, capture_output=True, text=True).stdout
    assert str(environment) in where
    report = json.loads(run("generate", "--out", "out-mask", "--trajectories", "4", "--steps", "8", "--workers", "1", "--json"))
    assert report["rows"] == 4
    assert json.loads(run("verify", "out-mask", "--json"))["sound"] is True
    run("inspect", "out-mask", "--html", "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()
    for model in ("embedded", "embedded:uniform"):
        assert len(json.loads(run("sample", "--model", model, "--steps", "4", "-n", "2", "--json"))["texts"]) == 2
