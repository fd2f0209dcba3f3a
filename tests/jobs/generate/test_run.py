"""The job on Ray: one dataset whatever the workers, the kills and the interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.commands import running, wait_for
from tests.support import TinyModels, make_dataset, present, tiny_config
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.schemas.generate import GenerateConfig

IN_PROCESS = InThisProcess(torch.device("cpu"))

SHARDS = 12


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file of a dataset; its data must be identical bytes, and so must all else."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def config_file(folder: Path, out: Path, models: TinyModels, **changes: object) -> Path:
    config = tiny_config(out, models) | {"trajectories": SHARDS, "shard_size": 1} | changes
    config["rollout"] = {"steps": 256, "batch_size": 4}
    file = folder / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def shards_in(out: Path) -> int:
    return len(list(out.glob("data/*.parquet")))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_models) -> dict[str, bytes]:
    """The dataset as made without Ray, in one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    make_dataset(out, tiny_models, trajectories=SHARDS, shard_size=1, rollout={"steps": 256, "batch_size": 4})
    return bytes_of(out)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "where"), [(1, "head"), (2, "local")])
def test_any_number_of_workers_gives_the_same_bytes(workers, where, tmp_path, tiny_models, reference, request):
    address = where if where == "local" else request.getfixturevalue(where).address
    file = config_file(tmp_path, tmp_path / "out", tiny_models, workers=workers, address=address)
    with running("generate", file, "--json") as process:
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert (report["shards"], report["made"], report["kept"], report["rows"]) == (SHARDS, SHARDS, 0, 2 * SHARDS)
    assert bytes_of(tmp_path / "out") == reference
    with running("generate", file, "--json") as again:
        stdout, stderr = again.communicate(timeout=200)
    assert json.loads(stdout)["kept"] == SHARDS, stderr
    assert bytes_of(tmp_path / "out") == reference


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_shows(tmp_path, tiny_models, reference, head):
    out = tmp_path / "out"
    with running("generate", config_file(tmp_path, out, tiny_models, workers=2, address=head.address)) as process:
        wait_for(lambda: shards_in(out) >= 2)
        victims = head.workers()
        assert victims
        victims[0].kill()
        _, stderr = process.communicate(timeout=250)
    assert process.returncode == 0, stderr
    assert bytes_of(out) == reference


@pytest.mark.slow
@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.release), 5])
def test_a_killed_driver_resumes_to_the_same_bytes(after, tmp_path, tiny_models, reference, head):
    out = tmp_path / "out"
    file = config_file(tmp_path, out, tiny_models, workers=2, address=head.address)
    with running("generate", file) as process:
        wait_for(lambda: (out / ".run.json").exists() and shards_in(out) >= after)
        process.kill()
        process.wait()
    assert not (out / "manifest.json").exists()
    with running("generate", file, "--json") as again:
        stdout, stderr = again.communicate(timeout=250)
    assert again.returncode == 0, stderr
    assert json.loads(stdout)["kept"] >= after
    assert bytes_of(out) == reference


@pytest.mark.slow
def test_one_interrupt_finishes_the_shard_in_hand_and_prints_how_to_resume(tmp_path, tiny_models, reference, head):
    out = tmp_path / "out"
    file = config_file(tmp_path, out, tiny_models, workers=1)
    with running("generate", file) as process:
        wait_for(lambda: shards_in(out) >= 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"resume with: tsdfm-pipeline generate {file}" in stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    left = shards_in(out)
    assert 2 <= left < SHARDS
    with running("generate", file, "--address", head.address, "--json") as again:
        stdout, stderr = again.communicate(timeout=200)
    assert json.loads(stdout)["kept"] == left
    assert bytes_of(out) == reference


@pytest.mark.slow
def test_a_running_cluster_serves_through_auto(tmp_path, tiny_models, reference, head, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    out = tmp_path / "out"
    with running("generate", config_file(tmp_path, out, tiny_models, workers=2), "--address", "auto") as process:
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert bytes_of(out) == reference


def test_only_the_bytes_that_the_manifest_names_are_kept(tmp_path, tiny_models):
    """Damage can leave a shard well-formed: a sound shard of the same run in another's place, and one bit of a number."""
    from tsdfm.pipeline.dataset.manifest import on_record, plan, read_manifest
    from tsdfm.pipeline.storage.open_store import open_store

    out = tmp_path / "out"
    make_dataset(out, tiny_models)
    store = open_store(str(out))
    manifest = read_manifest(store)
    items, records = plan(manifest.identity), {record.path: record for record in manifest.shards}
    assert all(on_record(store, records[item.path]) for item in items)
    victim = out / items[1].path
    whole = bytearray(victim.read_bytes())
    for spoiled in ((out / items[0].path).read_bytes(), b"PAR1", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        victim.write_bytes(spoiled)
        assert on_record(store, records[items[1].path]) is None
    assert on_record(store, records[items[2].path]) is not None
    kept = generate_dataset(GenerateConfig.model_validate(tiny_config(out, tiny_models)), maker=IN_PROCESS)
    assert (kept.made, kept.kept) == (1, 2)
    assert victim.read_bytes() == bytes(whole)


def unfinished(out: Path, models: TinyModels, **changes: object) -> GenerateConfig:
    """A dataset of three shards whose run died after the second."""
    class Dies(InThisProcess):
        def make(self, work, missing, progress):
            super().make(work, missing[:2], progress)
            raise KeyboardInterrupt

    config = GenerateConfig.model_validate(tiny_config(out, models) | changes)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset(config, maker=Dies(torch.device("cpu")))
    assert not (out / "manifest.json").exists()
    return config


def test_of_an_unfinished_run_only_what_has_a_receipt_is_kept(tmp_path, tiny_models):
    make_dataset(tmp_path / "whole", tiny_models)
    for damage, made in (("nothing", 1), ("shard", 2), ("receipt", 2), ("foreign receipt", 2), ("no receipts", 3)):
        out = tmp_path / damage
        config = unfinished(out, tiny_models)
        receipts = sorted((out / ".receipts").iterdir())
        assert [receipt.name for receipt in receipts] == [f"{path.name}.json" for path in sorted((out / "data").iterdir())]
        if damage == "shard":
            victim = sorted((out / "data").iterdir())[0]
            data = victim.read_bytes()
            victim.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
        elif damage == "receipt":
            receipts[0].write_bytes(receipts[0].read_bytes()[:-3])
        elif damage == "foreign receipt":
            receipts[0].write_bytes(receipts[1].read_bytes())
        elif damage == "no receipts":
            shutil.rmtree(out / ".receipts")
        report = generate_dataset(config, maker=IN_PROCESS)
        assert (report.made, report.kept) == (made, 3 - made), damage
        assert bytes_of(out / "data") == bytes_of(tmp_path / "whole" / "data"), damage
        assert not list(out.glob(".receipts/*"))


@pytest.mark.parametrize("former", [False, True])
def test_shards_of_another_run_are_not_this_ones(tmp_path, tiny_models, former):
    """Story: the files of a run of another seed were copied over, receipts and all, and committed. `former`: receipts that name no run."""
    changes: dict[str, Any] = {"rollout": {"steps": 8, "batch_size": 4, "seed": 5}, "arm": "blind"}
    make_dataset(tmp_path / "whole", tiny_models, **changes)
    unfinished(tmp_path / "other", tiny_models, arm="blind")
    config = unfinished(tmp_path / "out", tiny_models, **changes)
    if not former:
        for name in ("data", ".receipts"):
            shutil.copytree(tmp_path / "other" / name, tmp_path / "out" / name, dirs_exist_ok=True)
    else:
        [copied, own] = sorted((tmp_path / "out" / "data").iterdir())
        shutil.copy2(tmp_path / "other" / "data" / copied.name, copied)
        shutil.copy2(tmp_path / "other" / ".receipts" / f"{copied.name}.json", tmp_path / "out" / ".receipts")
        for file in (copied, own):
            receipt = tmp_path / "out" / ".receipts" / f"{file.name}.json"
            noted = json.loads(receipt.read_text())
            del noted["identity"]
            receipt.write_text(json.dumps(noted))
    report = generate_dataset(config, maker=IN_PROCESS)
    assert (report.made, report.kept) == ((2, 1) if former else (3, 0))
    assert bytes_of(tmp_path / "out" / "data") == bytes_of(tmp_path / "whole" / "data")


def test_the_last_partial_shard_and_the_pairing_of_arms(tmp_path, tiny_models):
    import pyarrow.parquet as pq

    make_dataset(tmp_path / "out", tiny_models)
    tables = [pq.read_table(p) for p in sorted((tmp_path / "out" / "data").iterdir())]
    assert [t.num_rows for t in tables] == [8, 8, 4]
    assert tables[2].column("trajectory_id").to_pylist() == [8, 8, 9, 9]
    assert tables[2].column("arm").to_pylist() == ["shaped", "blind"] * 2


def test_a_dataset_does_not_depend_on_how_it_is_sharded(tmp_path, tiny_models):
    """Rows are a function of (config, id): other shard borders with the same batches give the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for size in (4, 8):
        out = tmp_path / str(size)
        make_dataset(out, tiny_models, shard_size=size, trajectories=8)
        tables.append(pa.concat_tables(pq.read_table(p) for p in sorted((out / "data").iterdir())))
    assert repr(tables[0].to_pylist()) == repr(tables[1].to_pylist())  # repr, for NaN is not equal to itself


def test_datasets_duckdb_and_polars_read_it_without_our_code(tmp_path, tiny_models, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets
    import duckdb
    import polars as pl

    out = tmp_path / "out"
    manifest = make_dataset(out, tiny_models)
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == manifest.totals.rows == 20
    streamed = next(iter(datasets.load_dataset(str(out), split="train", streaming=True)))
    assert streamed["tokens"] == rows[0]["tokens"]
    pattern = str(out / "data" / "*.parquet")
    counted = present(duckdb.sql(f"select count(*), sum(len(event_step)) from '{pattern}'"))
    assert counted.fetchall() == [(20, manifest.totals.events)]
    assert pl.read_parquet(pattern)["final_energy"].null_count() == 0


RUNNING = """
import sys, ray
from pathlib import Path
from tsdfm.jobs.distill.run import distill
from tsdfm.jobs.generate.run import generate
from tsdfm.jobs.shell.options import build
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.generate import GenerateConfig
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
marked = ray.put("still here")
report = generate(build(GenerateConfig, Path(sys.argv[1]), {}))
assert (report.made, ray.is_initialized(), ray.get(marked)) == (report.shards, True, "still here")
settings = {"data": {"paths": [report.out]}, "budgets": {8: 1}, "optim": {"steps": 2, "batch_size": 4}}
distill(DistillConfig.model_validate(settings), Path(sys.argv[2]))
assert (ray.is_initialized(), ray.get(marked)) == (True, "still here")
print("done")
"""


@pytest.mark.slow
def test_a_ray_that_runs_in_the_process_is_used_and_left_running(tmp_path, tiny_models):
    file = config_file(tmp_path, tmp_path / "out", tiny_models, trajectories=4)
    done = subprocess.run([sys.executable, "-c", RUNNING, str(file), str(tmp_path / "student")], capture_output=True, text=True, check=False,
                          timeout=250)
    assert done.stdout.strip().endswith("done"), done.stderr
    assert (tmp_path / "student" / "model.safetensors").is_file()


@pytest.mark.slow
def test_workers_import_nothing_from_where_the_user_stands(tmp_path, tiny_models):
    """Ray puts the driver's working directory on its workers' path: a file of a library's name there would be run."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("safetensors", "tokenizers", "zstandard"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\nraise ImportError('not the library')\n")
    file = config_file(tmp_path, tmp_path / "out", tiny_models, trajectories=2, workers=1)
    done = subprocess.run([Path(sys.executable).with_name("tsdfm-pipeline"), "generate", file], cwd=folder, capture_output=True, text=True,
                          check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was run").exists()
    assert shards_in(tmp_path / "out") == 2
