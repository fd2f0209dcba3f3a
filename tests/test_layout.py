"""The house: layers, rooms, who may import ray, torch and click, how large a room may be; every module imports and is documented."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["schemas", "kernels", "pipeline", "jobs"]
# Each room of pipeline/ may import those of the groups before its own.
ROOMS = [{"storage"}, {"text"}, {"models", "dataset"}, {"flow", "loader"}, {"training", "evaluation"}, {"publishing"}]
ORDERS = {"pipeline": ROOMS, "jobs": [{"shell"}, {"crew"}, {"plan"}, {"generate", "train", "inspect", "evaluate", "distill"}, {"ablate", "demo"}]}
RAY = {"jobs/shell/cluster.py", "jobs/crew/census.py", "jobs/crew/tasks.py", "jobs/crew/working.py", "jobs/crew/training/group.py", "jobs/crew/training/side_by_side.py", "jobs/generate/measure.py",
       "jobs/generate/metrics.py", "jobs/ablate/run.py", "jobs/train/spread.py", "jobs/crew/mapper.py"}
MODULES_PER_ROOM, LINES_PER_MODULE = 10, 330
MODULES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["tsdfm", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imports(path: Path) -> set[str]:
    """Every module that a file imports, in functions too, but not for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(parts: tuple[str, ...]) -> str | None:
    """The room of a module of pipeline/ or jobs/, by the parts of its path or name; None: it stands in the layer itself."""
    return parts[1] if len(parts) > 2 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    place = path.relative_to(ROOT).with_suffix("").parts
    layer, mine = place[0], room(place)
    for name in imports(path):
        parts = tuple(name.split("."))
        assert not (parts[0] == "ray" and str(path.relative_to(ROOT)) not in RAY), f"{name}: only {sorted(RAY)} may"
        assert not (parts[0] == "torch" and layer == "schemas"), name
        assert not (parts[0] == "click" and layer != "jobs"), name
        if parts[0] != "tsdfm" or len(parts) < 2:
            continue
        assert parts[1] in LAYERS[: LAYERS.index(layer) + 1], f"{name} is a layer above"
        if parts[1] == layer in ORDERS and mine is not None:
            theirs = room(parts[1:])
            groups = ORDERS[layer]
            floor = next(i for i, group in enumerate(groups) if mine in group)
            assert theirs is None or theirs == mine or any(theirs in group for group in groups[:floor]), (
                f"{name}: {mine} may import {sorted(set().union(*groups[:floor]))} and itself")


def test_every_room_has_its_place_and_none_is_too_large():
    for layer, groups in ORDERS.items():
        found = {path.name for path in (ROOT / layer).iterdir() if (path / "__init__.py").is_file()}
        assert found == set().union(*groups)
        for folder in (ROOT / layer).rglob("__init__.py"):
            modules = [path for path in folder.parent.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
            assert len(modules) <= MODULES_PER_ROOM, folder.parent
    assert [path for path in (ROOT / "pipeline").glob("*.py") if path.name != "__init__.py"] == []


def test_every_folder_of_the_code_is_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(name_of(path) for path in MODULES if path.name == "__init__.py")


def test_exactly_these_files_import_ray():
    found = {str(path.relative_to(ROOT)) for path in MODULES if any(name.split(".")[0] == "ray" for name in imports(path))}
    assert found == RAY


def test_no_circle():
    graph = {name_of(path): {name for name in imports(path) if name.startswith("tsdfm.")} for path in MODULES}
    graph = {name: found & graph.keys() - {name} for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name):], name])
        if name not in done:
            for each in graph[name]:
                visit(each, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_imports_and_is_small(path):
    if path.name != "__main__.py":
        importlib.import_module(name_of(path))
    assert len(path.read_text().splitlines()) <= LINES_PER_MODULE


def loaded_after(code: str) -> set[str]:
    """Top-level modules of a fresh process that ran some code."""
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], check=True, capture_output=True,
                          text=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_reading_and_verifying_a_dataset_imports_no_torch(tmp_path, tiny_models):
    from tests.support import copy_dataset

    copy_dataset(tmp_path / "out", tiny_models)
    code = f"""
from tsdfm.pipeline.dataset.manifest import read_manifest, read_shard, read_vocabulary
from tsdfm.pipeline.dataset.summary import read_trajectories, summarise
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.storage.open_store import open_store
store = open_store({str(tmp_path / 'out')!r})
manifest, faults = verify(store)
assert not faults
read_vocabulary(store, manifest), read_shard(store, manifest.shards[0]), read_trajectories(store, manifest, [0]), summarise(store)
"""
    assert not {"torch", "ray", "transformers", "huggingface_hub"} & loaded_after(code)


def test_only_jobs_need_ray_and_help_needs_nothing_heavy():
    assert "ray" not in loaded_after("import tsdfm.pipeline.flow.generate, tsdfm.pipeline.training.distill")
    code = "from click.testing import CliRunner; from tsdfm.jobs.cli import cli; assert not CliRunner().invoke(cli, ['--help']).exception"
    assert not {"torch", "ray", "pyarrow", "numpy"} & loaded_after(code)
