"""`verify --address`: files are checked as Ray tasks, with the faults in order."""

import pytest

from tests.support import make_dataset


@pytest.mark.slow
def test_verify_on_a_cluster_tells_what_threads_tell(tmp_path, tiny_models, cli, monkeypatch):
    import ray

    out = tmp_path / "out"
    make_dataset(out, tiny_models, trajectories=40)
    for victim in sorted((out / "data").iterdir())[2:7:2]:
        data = victim.read_bytes()
        victim.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    here = cli("verify", out)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = cli("verify", out, "--address", "auto")
    finally:
        ray.shutdown()
    assert here.code == there.code == 1
    assert [line for line in here.stderr.splitlines() if "parquet" in line] == [
        line for line in there.stderr.splitlines() if "parquet" in line]


def test_a_cluster_that_is_not_there_is_told_in_one_line(tmp_path, tiny_models, cli):
    make_dataset(tmp_path / "out", tiny_models)
    outcome = cli("verify", tmp_path / "out", "--address", "127.0.0.1:1")
    assert outcome.code == 2, outcome
    assert "nobody listens there" in outcome.stderr
