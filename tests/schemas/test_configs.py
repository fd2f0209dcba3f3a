"""What configs accept: limits on both sides of numbers, those of a model where it is the same thing, and nothing that is idle."""

import importlib
import pkgutil
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

import tsdfm.schemas
from tsdfm.schemas.base import Frozen, InputError, parse
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.import_teacher import ImportConfig
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.sample import SampleConfig
from tsdfm.schemas.train import PretrainConfig

OF_FILES = "tsdfm.schemas.model"  # of models, whose vocabularies say themselves how large they are
MODULES = [importlib.import_module(f"tsdfm.schemas.{each.name}") for each in pkgutil.iter_modules(tsdfm.schemas.__path__)]
CONFIGS = {name: kind for module in MODULES if module.__name__ != OF_FILES for name, kind in vars(module).items()
           if isinstance(kind, type) and issubclass(kind, Frozen) and kind.__module__ == module.__name__
           and (name.endswith("Config") or name == "Sweep")}


def numbers(kind: Any, limits: tuple[Any, ...] = (), name: str = "") -> dict[str, tuple[Any, ...]]:
    """The limits of every int in a type, by its dotted name."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return numbers(inner, (*limits, *more), name)
    if get_origin(kind) in (Union, UnionType):
        return {key: found for each in get_args(kind) for key, found in numbers(each, limits, name).items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {key: found for each, field in kind.model_fields.items()
                for key, found in numbers(field.annotation, tuple(field.metadata), f"{name}.{each}").items()}
    if get_origin(kind) not in (None, Literal):
        return {key: found for each in get_args(kind) for key, found in numbers(each, (), f"{name}[]").items()}
    return {name: limits} if kind is int else {}


def ends(kind: type[BaseModel], name: str) -> tuple[Any, Any]:
    """The least and the most that a field takes."""
    limits = flat(tuple(kind.model_fields[name].metadata))
    least = [each.ge if isinstance(each, Ge) else each.gt for each in limits if isinstance(each, Ge | Gt)]
    most = [each.le if isinstance(each, Le) else each.lt for each in limits if isinstance(each, Le | Lt)]
    return (*least, None)[0], (*most, None)[0]


def flat(limits: tuple[Any, ...]) -> list[Any]:
    return [part for each in limits for part in getattr(each, "metadata", [each])]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_whole_number_has_limits_on_both_sides(name):
    found = {key: [type(each) for each in flat(limits)] for key, limits in numbers(CONFIGS[name]).items()}
    assert [key for key, kinds in found.items() if not {Le, Lt} & {*kinds} or not {Ge, Gt} & {*kinds}] == []


@pytest.mark.parametrize("config", [PretrainConfig, ImportConfig])
def test_a_model_takes_what_its_training_or_import_takes(config):
    shared = {name for name in config.model_fields.keys() & DenoiserConfig.model_fields.keys() if ends(config, name) != (None, None)}
    assert {"length", "kappa_exponent"} <= shared
    for name in shared:
        (least, most), (models_least, models_most) = ends(config, name), ends(DenoiserConfig, name)
        assert models_least <= least, name
        assert models_most is None or most <= models_most, name


def test_limits_are_walked():
    assert {"CompassConfig", "DemoConfig", "DistillConfig", "EvaluateConfig", "GenerateConfig", "SampleConfig", "Sweep"} <= CONFIGS.keys()
    assert ".optim.steps" in numbers(PretrainConfig)


@pytest.mark.parametrize("budgets", [{2: 1, "2": 3}, {2: 1, "02": 5}, {" 2": 1, "+2": 1}, "2,02", "2:1,2:3"])
def test_a_step_count_stands_once_however_it_is_written(budgets):
    with pytest.raises(InputError, match=r"budgets: .*a step count stands twice"):
        parse(DistillConfig, {"budgets": budgets}, "config.yaml")
    assert parse(DistillConfig, {"budgets": {2: 1, "4": 3}}, "").budgets == parse(DistillConfig, {"budgets": "2,4:3"}, "").budgets


@pytest.mark.parametrize("kind", [SampleConfig, GenerateConfig, EvaluateConfig])
def test_how_prompts_are_taken_needs_prompts(kind):
    with pytest.raises(InputError, match="prompt_field: says how prompts are taken, and there are none"):
        parse(kind, {"prompt_field": "question"}, "config.yaml")
    assert parse(kind, {"prompt_field": "question", "prompts": "p.jsonl"}, "config.yaml")


@pytest.mark.parametrize(("kind", "data", "words"), [
    (GenerateConfig, {"rollout": None}, "rollout: is empty; write something, or leave it out"),
    (GenerateConfig, {"out": ""}, "out: is empty; write something, or leave it out"),
    (EvaluateConfig, {"model": []}, "model: is empty; write something, or leave it out"),
    (DistillConfig, {"budgets": {}}, "budgets: is empty; write something, or leave it out"),
    (GenerateConfig, {"rollout": 3}, "rollout: expected a mapping of fields, not 3"),
    (DistillConfig, {"data": {"paths": "x"}}, "data.paths: expected a list, not 'x'"),
    (GenerateConfig, {"teacher": 3}, "teacher: expected a text, not 3"),
    (GenerateConfig, {"rollout": {"steps": 0}}, "rollout.steps: Input should be greater than or equal to 1, not 0")])
def test_what_is_wrong_is_said_in_plain_words(kind, data, words):
    with pytest.raises(InputError) as caught:
        parse(kind, data, "config.yaml")
    assert str(caught.value) == f"config.yaml: {words}"
