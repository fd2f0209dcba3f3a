"""Files of rates: how fast work of one kind goes somewhere, measured there and read here."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tsdfm.jobs.shell.cluster import cores_here
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.targets import check_file
from tsdfm.schemas.base import InputError, differences, parse_json, plain_json, to_json
from tsdfm.schemas.former import told_if_replaced
from tsdfm.schemas.plan import Machine, PlanWish, Rates
from tsdfm.schemas.regular import read_regular

LIBRARIES = ("tsdfm-pipeline", "torch")


def this_machine() -> Machine:
    """Where this process runs."""
    return Machine(device=device_name(), cores=cores_here())


def device_name() -> str:
    """What computes here: the GPU's name, or else the processor's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine() or "cpu"


def versions() -> dict[str, str]:
    """Of what rates depend on."""
    return {name: version(name) for name in LIBRARIES}


def checked_wish(wish: PlanWish) -> None:
    """Refuse what could not be written in the end, or makes no sense. Raises InputError."""
    if wish.rates is not None and wish.save_rates is not None:
        raise InputError("--save-rates: with --rates nothing is measured that could be saved; give one of them")
    if wish.save_rates is not None:
        target = Path(wish.save_rates)
        if target.is_dir() or not os.access(target.absolute().parent, os.W_OK):
            raise InputError(f"--save-rates {target}: can't be written; give a file in a folder that you can write to")
        check_file(target, "--save-rates", _is_rates, "file of rates")


def _is_rates(data: bytes) -> bool:
    try:
        return bool(parse_json(Rates, data, "rates"))
    except InputError:
        return False


def read_rates(name: str, command: str, measured_for: Mapping[str, Any], address: str) -> Rates:
    """The rates of a file. Raises InputError unless they are of this command, of these models and settings, and, for a run on
    this machine, of its device."""
    path = Path(name)
    try:
        data = read_regular(path)
    except OSError as error:
        raise InputError(f"--rates {name}: can't be read ({error.strerror or error}); give a file that --save-rates wrote"
                         ) from None
    rates = parse_json(Rates, data, f"--rates {name}")
    if rates.command != command:
        raise InputError(f"--rates {name}: was measured for {rates.command}, not for {command}; measure it with "
                         f"{command} --plan --save-rates FILE")
    differing = differences(rates.measured_for, dict(measured_for))
    if differing:
        raise InputError(f"--rates {name}: was measured for something else; measure this with --plan --save-rates FILE, or "
                         "make these equal: " + "; ".join(differing)
                         + told_if_replaced(rates.measured_for, dict(measured_for)))
    if address == "local" and rates.machine.device != device_name():
        raise InputError(f"--rates {name}: was measured on {rates.machine.device}, and this machine has {device_name()}; leave "
                         "out --rates, or give the --address of the cluster that they are for")
    return rates


def save_rates(rates: Rates, name: str) -> None:
    """Write a file of rates, whole or not at all. Raises InputError."""
    try:
        write_atomic(Path(name), to_json(rates).encode())
    except OSError as error:
        raise InputError(f"--save-rates {name}: can't be written ({error.strerror or error})") from None


def as_json(record: Any) -> Any:
    """A record as it will be read from a file again, for comparison with one that was."""
    return plain_json(record.model_dump_json(), "rates")
