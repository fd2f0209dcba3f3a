"""The cluster files can't be run here; what can drift apart is checked."""

import re
from pathlib import Path

import click
import pytest
import yaml

from tsdfm.jobs.cli import cli
from tsdfm.jobs.shell.options import recipes

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def documents(name: str) -> list[dict]:
    return [d for d in yaml.safe_load_all((DOCKER / name).read_text()) if d]


def flags(command: str) -> set[str]:
    known = {option for parameter in command_of("generate").params for option in parameter.opts}
    found = set(re.findall(r"(?<!\S)--[a-z-]+", command))
    assert found <= known, found - known
    return found


def command_of(name: str):
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_compose_requires_a_token_and_publishes_on_loopback_only():
    compose = documents("compose.yaml")[0]
    text = (DOCKER / "compose.yaml").read_text()
    assert "RAY_AUTH_MODE: token" in text
    assert "${RAY_AUTH_TOKEN:?" in text
    assert {"head", "worker", "generate"} & compose["services"].keys()
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:")


def test_compose_generates_with_flags_that_exist():
    compose = documents("compose.yaml")[0]
    command = compose["services"]["generate"]["command"]
    assert "--out" in flags(command if isinstance(command, str) else " ".join(command))


def test_the_rayjob_generates_with_flags_that_exist():
    job = next(d for d in documents("rayjob.yaml") if d["kind"] == "RayJob")
    assert "--out" in flags(job["spec"]["entrypoint"].partition("generate")[2])


def test_the_rayjob_of_the_chain_runs_the_script_that_ships():
    job = next(d for d in documents("rayjob-chain.yaml") if d["kind"] == "RayJob")
    entrypoint = job["spec"]["entrypoint"]
    script = re.search(r"tsdfm-pipeline recipe (\S+)", entrypoint)
    assert script is not None
    assert script[1] in recipes()
    assert re.search(r"ADDRESS=auto WORKERS=(\d+) bash \S+ /data (\S+)'", entrypoint)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"WORKERS={group['maxReplicas'] * gpus} " in entrypoint


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayjob-chain.yaml"])
def test_a_rayjob_is_one_image_one_version_and_authenticated(name):
    job = next(d for d in documents(name) if d["kind"] == "RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    assert cluster["authOptions"]["mode"] == "token"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    images = set(re.findall(r"^\s*(?:- )?image: (\S+)", (DOCKER / name).read_text(), re.MULTILINE))
    assert len(images) == 1
    claim = next(d for d in documents(name) if d["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_images_do_not_run_as_root_and_copy_what_exists(name):
    text = (DOCKER / name).read_text()
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] not in ("root", "0")
    for line in (DOCKER / f"{name}.dockerignore").read_text().splitlines():
        if line.startswith("!"):
            assert (ROOT / line[1:].strip("/").removesuffix("/**")).exists(), line


def test_no_registry_host_is_named():
    for file in DOCKER.iterdir():
        for address in re.findall(r"https?://[^\s\"']+", file.read_text()):
            assert re.match(r"https?://(127\.0\.0\.1|localhost)", address), f"{file.name}: {address}"
