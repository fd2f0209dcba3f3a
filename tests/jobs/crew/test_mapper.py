"""Files that are read by the tasks of a cluster: what comes out is what threads find, and this process reads none."""

import shutil

import pytest

from tests.support import assert_refused, make_dataset, tiny_config
from tsdfm.jobs.crew.mapper import spread
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.generate import GenerateConfig


@pytest.fixture(scope="module")
def ray():
    import ray

    yield ray
    ray.shutdown()


@pytest.fixture
def nodes(ray):
    if not ray.is_initialized():  # it takes seconds, so it is left running for the tests that follow
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    out = tmp_path_factory.mktemp("read") / "out"
    make_dataset(out, tiny_models, trajectories=40)
    return out


@pytest.fixture
def not_here(monkeypatch):
    """This process opens no file of a dataset."""

    def refuse(store, path):
        raise AssertionError(f"{path} is read by the driver")

    monkeypatch.setattr(LocalStore, "open", refuse)


def damaged(made, out):
    shutil.copytree(made, out)
    for victim in sorted((out / "data").iterdir())[2:7:2]:
        data = victim.read_bytes()
        victim.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
def test_verify_on_a_cluster_tells_what_threads_tell(made, tmp_path, cli):
    out = damaged(made, tmp_path / "out")
    here, there = cli("verify", out), cli("verify", out, "--address", "auto")
    assert here.code == there.code == 1
    assert [line for line in here.stderr.splitlines() if "parquet" in line] == [
        line for line in there.stderr.splitlines() if "parquet" in line]


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("flags", [(), ("--counterfactual",)], ids=["figures", "counterfactual"])
def test_inspect_on_a_cluster_shows_what_threads_find(flags, made, cli, request):
    here = cli("inspect", made, *flags, "--json")
    request.getfixturevalue("not_here")
    there = cli("inspect", made, *flags, "--json", "--address", "auto")
    assert here.code == there.code == 0, there.stderr
    assert here.stdout == there.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
def test_a_fault_that_a_task_finds_is_the_line_that_a_thread_says(made, tmp_path, cli):
    out = damaged(made, tmp_path / "out")
    here, there = cli("inspect", out), cli("inspect", out, "--address", "auto")
    assert here.code == there.code == 2
    assert here.stderr.splitlines()[-1] == there.stderr.splitlines()[-1]
    assert "train-00002-of-00010.parquet: its bytes differ" in here.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("nodes", "not_here")
def test_publish_has_a_cluster_check_what_it_sends(made, tmp_path, cli, hub):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    outcome = cli("publish", out, "--repo", "team/out", "--address", "auto")
    assert outcome.code == 0, outcome.stderr
    bad = damaged(made, tmp_path / "bad")
    outcome = cli("publish", bad, "--repo", "team/bad", "--address", "auto")
    assert outcome.code == 2
    assert "nothing was published" in outcome.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("nodes", "not_here")
def test_generate_on_a_cluster_has_it_hash_what_is_there_and_keep_what_grows(made, tmp_path, tiny_models, monkeypatch):
    from tsdfm.jobs.generate.run import generate

    out = damaged(made, tmp_path / "out")
    config = GenerateConfig.model_validate(tiny_config(out, tiny_models) | {"trajectories": 40, "address": "auto"})
    report = generate(config)
    assert (report.made, report.kept, len(report.unsound)) == (3, 7, 3)
    report = generate(config.model_copy(update={"trajectories": 41}))
    assert (report.made, report.kept, report.grown_from) == (1, 10, 40)
    make_dataset(tmp_path / "at once", tiny_models, trajectories=41)
    for path in sorted((out / "data").iterdir()):
        assert path.read_bytes() == (tmp_path / "at once" / "data" / path.name).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("nodes", "not_here")
def test_rows_are_chosen_by_energies_that_a_cluster_reads(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = Reader.open(DataConfig(paths=[str(made)], best=0.25), ReaderSettings(), spread).sources[0]
    assert int(source.rows_of_shard.sum()) == 10


def _fails(number):
    if number == 70:
        raise InputError("70: not a number")
    if number > 100:
        raise KeyError("x")
    return number * number


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
def test_many_items_come_back_in_order_and_what_one_raises_comes_in_its_turn():
    assert list(spread(_fails, range(70))) == [number * number for number in range(70)]
    with pytest.raises(InputError, match="70: not a number"):
        list(spread(_fails, range(80)))
    with pytest.raises(WorkError, match=r"a Ray task failed \(KeyError"):
        list(spread(_fails, range(101, 400)))
    assert list(spread(_fails, [])) == []


def test_address_is_for_what_reads_a_whole_dataset(made, cli):
    outcome = cli("inspect", made, "--trajectory", "1", "--address", "auto")
    assert outcome.code == 2
    assert "--address" in outcome.stderr


@pytest.mark.parametrize("command", [("verify",), ("inspect",), ("inspect", "--counterfactual")], ids=" ".join)
def test_a_cluster_that_is_not_there_is_told_in_one_line(command, made, cli, ray):
    ray.shutdown()
    assert_refused(cli(command[0], made, *command[1:], "--address", "127.0.0.1:1"), "nobody listens there")
