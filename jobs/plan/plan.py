"""From a command's job to its plan: rates are read or measured, and what is left to do is counted and priced by them."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tsdfm.jobs.plan.rates import checked_wish, read_rates, save_rates, versions
from tsdfm.jobs.shell.console import say
from tsdfm.schemas.base import InputError
from tsdfm.schemas.plan import Machine, Plan, PlanWish, Rates, Stage

CALIBRATE_SECONDS = 12.0  # of work that is measured, after everything that happens once


@dataclass(frozen=True)
class Measurement:
    """What was measured: on what, in how many processes at once, and the numbers."""

    machine: Machine
    workers: int
    numbers: dict[str, float]


@dataclass(frozen=True)
class Forecast:
    """What a run will make, and take: see `Plan`."""

    makes: dict[str, int]
    there: dict[str, int]
    work: dict[str, float]
    stages: list[Stage]
    devices: int
    remarks: list[str] = field(default_factory=list)


class Job(Protocol):
    """A run that is planned. Whoever makes one has made all checks of the run, without changing anything."""

    @property
    def command(self) -> str:
        """Its name."""

    @property
    def out(self) -> str | None:
        """Where the run would write."""

    @property
    def address(self) -> str:
        """Where it would run."""

    def measured_for(self) -> Mapping[str, Any]:
        """All that rates depend on, as JSON."""

    def measure(self) -> Measurement:
        """Do a little of the work, as the run does it, somewhere else. Raises InputError or WorkError."""

    def forecast(self, rates: Rates) -> Forecast:
        """What the run makes and takes, by rates."""


def plan_of(job: Job, wish: PlanWish) -> Plan:
    """The plan of a job. Raises InputError or WorkError; the job's folder is left as it is."""
    checked_wish(wish)
    if wish.rates is None:
        say("measuring how fast this goes, for about a minute; nothing is written to --out")
        found = job.measure()
        rates = Rates(command=job.command, machine=found.machine, workers=found.workers, versions=versions(),
                      measured_for=dict(job.measured_for()), numbers=found.numbers)
        if wish.save_rates is not None:
            save_rates(rates, wish.save_rates)
    else:
        rates = read_rates(wish.rates, job.command, job.measured_for(), job.address)
    told = job.forecast(rates)
    seconds = sum(stage.seconds for stage in told.stages)
    hours = seconds * told.devices / 3600
    return Plan(
        command=job.command, out=job.out, makes=told.makes, there=told.there, work=told.work, stages=told.stages,
        seconds=seconds, devices=told.devices, device_hours=hours, price=wish.price,
        money=None if wish.price is None else hours * wish.price, rates=rates, rates_from=wish.rates,
        remarks=[*told.remarks, *_of_versions(rates)])


def _of_versions(rates: Rates) -> list[str]:
    other = [f"{name} {there}" for name, there in rates.versions.items() if versions().get(name) != there]
    return [f"the rates were measured with {', '.join(other)}"] if other else []


def started_seconds() -> float:
    """Seconds since this process began."""
    with suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return time.process_time()


def check_writable(out: Path) -> None:
    """Refuse a folder that couldn't be made or written to. Raises InputError; nothing is written."""
    there = out.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{out}: cannot write there; give a folder you can write to")
