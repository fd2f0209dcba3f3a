"""How many cores a job takes, where a container allows fewer than the machine has."""

import os

import pytest

from tsdfm.jobs.shell.cluster import cores_here

BOUND = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cores"), [
    ("max 100000", BOUND), ("100000 100000", 1), ("50000 100000", 1), ("999900000 100000", BOUND), ("nonsense", BOUND)])
def test_the_quota_of_cgroups_2(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores_here(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", BOUND), ("100000", 1), ("150000", min(2, BOUND))])
def test_the_quota_of_cgroups_1(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores_here(tmp_path) == cores


def test_no_cgroups(tmp_path):
    assert cores_here(tmp_path / "nothing") == BOUND
