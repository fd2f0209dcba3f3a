"""What a run tells Prometheus: a compass is timed without being changed, and Ray exports what was made."""

import re
import socket
import time
import urllib.request

import numpy as np
import pytest
import torch

from tests.support import present, tiny_config
from tsdfm.jobs.generate.metrics import METRICS
from tsdfm.jobs.generate.timed import Timed
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.schemas.generate import GenerateConfig


@pytest.mark.parametrize("kind", ["ar", "nce"])
def test_a_timed_compass_makes_the_same_trajectories_and_knows_how_long_it_took(tiny_models, tmp_path, kind):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models) | {"compass": str(getattr(tiny_models, kind))})
    models = open_models(config, torch.device("cpu"))
    timed = Timed(present(models.compass))
    began = time.perf_counter()
    mine, plain = (roll_out(models.teacher.network, compass, config.rollout, config.shaping, range(3), "shaped") for compass in (timed, models.compass))
    assert 0 < timed.seconds < time.perf_counter() - began
    assert [each.final_energy for each in mine] == [each.final_energy for each in plain]
    for a, b in zip(mine, plain, strict=True):
        np.testing.assert_array_equal(a.step_energy, b.step_energy)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_prometheus_finds_what_was_made(tiny_models, tmp_path):
    pytest.importorskip("opencensus", reason="the extra 'metrics' is not installed")
    import ray

    from tsdfm.jobs.generate.run import generate

    port, wanted = free_port(), {"trajectories": 20, "tokens": 20 * 16, "shards": 3}
    ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 500})
    try:
        generate(GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models) | {"workers": 1}))
        found, deadline = dict[str, float](), time.monotonic() + 60
        while time.monotonic() < deadline and not (found.keys() >= METRICS.keys() and found["shards"] == wanted["shards"]):
            time.sleep(0.5)
            text = urllib.request.urlopen(f"http://{ray.util.get_node_ip_address()}:{port}/metrics", timeout=10).read().decode()
            found = {name: float(value) for name, value in re.findall(r"^ray_tsdfm_(\w+?)_total\{[^}]*\} (\S+)$", text, re.MULTILINE)}
            assert not found or f'dataset="{tmp_path}/out"' in text
        assert found | wanted == found
        assert 0 < found["compass_seconds"] < found["making_seconds"]
    finally:
        ray.shutdown()
