"""`--plan`: what a run will make and cost, and the rates that it was told by."""

from typing import Any, Literal

from pydantic import Field

from tsdfm.schemas.base import Frozen


class PlanWish(Frozen):
    """How a plan was asked for."""

    rates: str | None = Field(None, description="file of rates to plan by; null: they are measured now")
    save_rates: str | None = Field(None, description="file to write the measured rates to; null: none")
    price: float | None = Field(None, ge=0, description="of one device for an hour, in any currency; null: not known")


class Machine(Frozen):
    """Where rates were measured."""

    device: str = Field(description="the GPU's name, or else the processor's")
    cores: int = Field(ge=1, description="CPU cores that may be used, of a cluster all together")
    nodes: int = Field(1, ge=1, description="machines")


class Rates(Frozen):
    """The file of `--save-rates`: how fast work of one kind goes, and for which models and where that was measured."""

    format_version: Literal[1] = 1
    command: str
    machine: Machine
    workers: int = Field(ge=1, description="processes that were measured, all at work at the same time")
    measured_for: dict[str, Any] = Field(description="all that the rates depend on: the shapes of models, and settings")
    versions: dict[str, str]
    numbers: dict[str, float] = Field(description=(
        "seconds, bytes and shares by name; which there are depends on the command"))


class Stage(Frozen):
    """A part of a run, after which the next begins."""

    what: str
    seconds: float = Field(ge=0)


class Plan(Frozen):
    """`--plan` of any command: what is made, the work that takes, the time, and what it costs. Nothing was made."""

    command: str
    out: str | None
    makes: dict[str, int] = Field(description="what there will be: shards, rows, bytes, ...")
    there: dict[str, int] = Field(description="what of it is there already, and kept")
    work: dict[str, float] = Field(description="what is left to do, counted; expectations where chance decides")
    stages: list[Stage]
    seconds: float = Field(ge=0, description="wall clock, from the start of the command to its end")
    devices: int = Field(ge=1, description="GPUs, or else workers on CPUs, that are held all the time")
    device_hours: float = Field(ge=0)
    price: float | None
    money: float | None = Field(description="device-hours at the price; null: no price was given")
    rates: Rates
    rates_from: str | None = Field(description="the file they were read from; null: they were measured for this plan")
    remarks: list[str] = Field(default_factory=list, description="what to know before trusting a figure")
