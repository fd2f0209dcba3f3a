"""The quickstart runs as it stands, as a script and as a notebook's cells, and the notebook is the script's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.notebook import notebook

HERE = Path(__file__).parent


def test_the_notebook_is_the_script():
    assert (HERE / "quickstart.ipynb").read_text() == notebook((HERE / "quickstart.py").read_text())


@pytest.mark.slow
def test_the_cells_run_one_after_another(tmp_path):
    """As a notebook does: each cell by itself, all in one namespace, from an empty folder."""
    cells = ["".join(cell["source"]) for cell in json.loads((HERE / "quickstart.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    code = "import json, sys\nnames = {}\nfor cell in json.load(sys.stdin): exec(compile(cell, 'cell', 'exec'), names)"
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(cells), cwd=tmp_path, capture_output=True, text=True, check=False,
                          env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "update 4: loss" in done.stdout
    assert (tmp_path / "quickstart" / "energies.png").stat().st_size > 1000
    assert (tmp_path / "quickstart" / "student" / "model.safetensors").is_file()
