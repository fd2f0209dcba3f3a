"""The jump log: replay against a naive one, the Parquet round trip, and the agreement of its two contracts."""

import math
import types
import typing
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.flow.compass import CausalCompass
from tsdfm.pipeline.flow.rollout import Begun, roll_out_begun
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.trajectory import ARROW_SCHEMA, WHOLE_SCHEMA, Grid, TrajectoryRow, arrow_schema, check_shard, format_version

VOCAB, MASK = 12, 11  # toy logs; the text column is decoded by a stub
energies = st.one_of(st.floats(-100, 100, width=32), st.just(math.nan))


class Words:
    """Stands in for a vocabulary where only `decode` is asked for."""

    @staticmethod
    def decode(tokens):
        return " ".join(map(str, tokens))


WORDS = cast(Vocabulary, Words)


NEWER = st.tuples(st.booleans(), st.booleans(), st.booleans())  # fixed positions, choices by token, log-probabilities


@st.composite
def logs(draw, mask=None, newer=None):
    """Any log that a rollout could write, and the steps N: mask or uniform source, shaped or not, with a top-k, with newer columns."""
    length, steps = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    k, top_k, shaped = draw(st.integers(1, 4)), draw(st.integers(0, 3)), draw(st.integers(0, 5))
    mask = draw(st.booleans()) if mask is None else mask
    given, by_token, logprobs = draw(NEWER) if newer is None else newer
    fixed = sorted(draw(st.sets(st.integers(0, length - 1), max_size=length - 1))) if given else []
    free = [i for i in range(length) if i not in fixed]
    if mask:
        when = draw(st.lists(st.integers(0, steps - 1), min_size=len(free), max_size=len(free)))
        events = sorted(zip(when, free, strict=True))
    else:
        pairs = st.tuples(st.integers(0, steps - 1), st.sampled_from(free))
        events = sorted(draw(st.sets(pairs, min_size=1, max_size=3 * length)) | {(steps - 1, i) for i in free})
    count = len(events)

    def ints(size, high=MASK - 1):
        return np.array(draw(st.lists(st.integers(0, high), min_size=size, max_size=size)), dtype=np.int32)

    token = ints(count)
    source = None if mask and not given else ints(length)
    if mask and source is not None:
        source[free] = MASK
    state = np.full(length, MASK, np.int32) if source is None else source.copy()
    for (_, i), v in zip(events, token, strict=True):
        state[i] = v
    floats = draw(st.lists(energies, min_size=shaped * k, max_size=shaped * k))
    falling = -np.sort(np.array(draw(st.lists(st.floats(0, 30), min_size=count * top_k, max_size=count * top_k))))
    return steps, JumpLog(
        trajectory_id=draw(st.integers(0, 2**31 - 1)), arm=draw(st.sampled_from(["shaped", "blind"])), source_tokens=source,
        tokens=state, event_step=np.array([s for s, _ in events], np.int32),
        event_position=np.array([i for _, i in events], np.int32), event_token=token,
        event_candidates=np.column_stack([token, *(ints(count) for _ in range(k - 1))]).astype(np.int32),
        event_topk_ids=ints(count * top_k).reshape(count, top_k),
        event_topk_logprobs=falling.astype(np.float16).reshape(count, top_k),
        step_energy=np.array(floats, np.float32).reshape(shaped, k) if shaped else np.empty((0, 1), np.float32),
        step_choice=ints(shaped, k - 1).astype(np.int8), final_energy=draw(st.one_of(st.none(), st.floats(-9, 9, width=32))),
        fixed_positions=np.array(fixed, np.int32) if given else None,
        event_choice=ints(count, k - 1).astype(np.int8) if by_token else None,
        event_energy=np.array(draw(st.lists(energies, min_size=count * k, max_size=count * k)), np.float32).reshape(count, k)
        if by_token else None,
        event_logprob=-ints(count * k).reshape(count, k).astype(np.float16) if logprobs else None,
    )


def schema_of(log):
    """The columns of the dataset that a log is of."""
    return pa.schema([field for field in WHOLE_SCHEMA if field.name in ARROW_SCHEMA.names or getattr(log, field.name) is not None])


def row_of(log):
    """The validated pydantic model of one log, as Python values."""
    columns = shards.columns_of(log, WORDS).items()
    return TrajectoryRow.model_validate({name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in columns})


def naive_state(log, step, mask_id):
    """One event after another, in Python."""
    state = [mask_id] * len(log.tokens) if log.source_tokens is None else log.source_tokens.tolist()
    for s, i, v in zip(log.event_step, log.event_position, log.event_token, strict=True):
        if s <= step:
            state[i] = int(v)
    return state


def assert_equal(one, other):
    for name in JumpLog.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        assert type(a) is type(b), name
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            assert a == b, name


@given(drawn=logs())
def test_state_after_is_the_naive_replay(drawn):
    steps, log = drawn
    before = [np.copy(log.tokens), None if log.source_tokens is None else np.copy(log.source_tokens)]
    for step in range(-1, steps):
        assert log.state_after(step, MASK).tolist() == naive_state(log, step, MASK)
    np.testing.assert_array_equal(log.state_after(-1, MASK), log.source(MASK))
    np.testing.assert_array_equal(log.state_after(steps - 1, MASK), log.tokens)
    np.testing.assert_array_equal(log.tokens, before[0])
    if log.source_tokens is not None:
        np.testing.assert_array_equal(log.source_tokens, before[1])  # a replay never writes into the source


@given(drawn=NEWER.flatmap(lambda newer: st.lists(logs(newer=newer), max_size=4)))
def test_round_trip_through_parquet(drawn):
    """to_table -> encode -> decode -> to_log gives the same log, and the same rows always the same bytes."""
    rows = [log for _, log in drawn]
    schema = schema_of(rows[0]) if rows else ARROW_SCHEMA
    table = shards.to_table(rows, WORDS, schema)
    assert table.schema.equals(schema)
    table.validate(full=True)
    data = shards.encode(table, "ab" * 32)
    assert shards.encode(shards.to_table(rows, WORDS, schema), "ab" * 32) == data
    read, identity = shards.decode(data, "somewhere")
    assert identity == "ab" * 32
    assert read.schema.equals(schema)
    assert read.num_rows == len(rows)
    for index, log in enumerate(rows):
        assert_equal(shards.to_log(read, index), log)
    assert shards.encode(shards.to_table([shards.to_log(read, i) for i in range(len(rows))], WORDS, schema), "ab" * 32) == data
    if rows:
        assert shards.encode(table, "cd" * 32) != data


@given(drawn=logs())
def test_a_row_validates_and_equals_its_arrow_cells(drawn):
    _, log = drawn
    row = row_of(log)
    cells = shards.to_table([log], WORDS, schema_of(log)).to_pylist()[0]
    plain = row.model_dump()
    assert list(plain) == list(cells) == schema_of(log).names
    for name in cells:
        np.testing.assert_equal(plain[name], cells[name])  # NaN equals NaN
    assert plain["event_candidates"] == log.event_candidates.ravel().tolist()  # row-major
    assert plain["text"] == Words.decode(log.tokens.tolist())


# What each Arrow type is in the row model.
PLAIN = {pa.int64(): int, pa.string(): str, pa.int32(): int, pa.float16(): float, pa.int8(): int, pa.float32(): float}


def bare(annotation):
    """(python type, is a list, may be None) of an annotation, Annotated and Literal stripped."""
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        optional = type(None) in typing.get_args(annotation)
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    is_list = typing.get_origin(annotation) is list
    if is_list:
        (annotation,) = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        annotation = type(typing.get_args(annotation)[0])
    return annotation, is_list, optional


def test_row_model_and_arrow_schema_agree():
    assert list(TrajectoryRow.model_fields) == WHOLE_SCHEMA.names
    for field in WHOLE_SCHEMA:
        python, is_list, optional = bare(TrajectoryRow.model_fields[field.name].annotation)
        assert is_list == pa.types.is_list(field.type), field.name
        assert optional == (field.nullable or field.name not in ARROW_SCHEMA.names), field.name
        assert python is PLAIN[field.type.value_type if is_list else field.type], field.name


@pytest.mark.parametrize(("name", "high"), [("trajectory_id", 2**63), ("event_token", 2**31), ("step_choice", 128)])
def test_the_row_model_takes_what_the_arrow_type_holds_and_no_more(name, high):
    one = np.zeros(1, np.int32)
    log = JumpLog(1, "blind", None, one, one, one, one, np.zeros((1, 1), np.int32), np.zeros((1, 0), np.int32),
                  np.zeros((1, 0), np.float16), np.zeros((1, 1), np.float32), np.zeros(1, np.int8), None)
    plain = row_of(log).model_dump()
    wrapped = [high - 1] if isinstance(plain[name], list) else high - 1
    data = {**plain, name: wrapped}
    TrajectoryRow.model_validate(data)
    pa.Table.from_pylist([data], schema=ARROW_SCHEMA)
    data = {**plain, name: [high] if isinstance(plain[name], list) else high}
    with pytest.raises(ValueError, match=name):
        TrajectoryRow.model_validate(data)
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        pa.Table.from_pylist([data], schema=ARROW_SCHEMA)


def test_not_a_parquet_file_is_one_line():
    for data in (b"", b"PAR1", b"not parquet at all" * 100):
        with pytest.raises(InputError) as caught:
            shards.decode(data, "data/train-0.parquet")
        assert str(caught.value).startswith("data/train-0.parquet: ")
        assert "\n" not in str(caught.value)


def test_truncated_parquet_is_an_input_error(rolled):
    data = shards.encode(shards.to_table(rolled("mask", "blind")[0], WORDS), "ab")
    for cut in (4, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError):
            shards.decode(data[:cut], "x")


# ----------------------------------------------------------------- logs of real rollouts

@pytest.fixture(scope="module")
def rolled(tiny_models):
    """(source, arm, rollout overrides, shaping overrides) -> logs of a tiny teacher, and the grid to check them against."""
    network = checkpoint.load(tiny_models.ar).network
    assert isinstance(network, CausalLM)
    compass = CausalCompass(network)

    def roll(source, arm, rollout=None, shaping=None, count=6, given=()):
        teacher = checkpoint.load_denoiser(getattr(tiny_models, source)).network
        rollout_config = RolloutConfig(**{"steps": 12, "seed": 1, "top_k": 3} | (rollout or {}))
        shaping_config = ShapingConfig(**{"candidates": 4} | (shaping or {}))
        fixed = torch.full((count, rollout_config.length or teacher.config.length), -1)
        fixed[:, list(given)] = torch.arange(count)[:, None] + 5
        begun = Begun(range(count), fixed if given else None)
        made = roll_out_begun(teacher, compass, rollout_config, shaping_config, begun, arm)
        grid = Grid(
            length=rollout_config.length or teacher.config.length, steps=rollout_config.steps, compass=True,
            vocab_size=teacher.config.vocab_size, mask_id=teacher.config.mask_id, candidates=shaping_config.candidates,
            shaped_steps=shaping_config.sequence_steps_of(rollout_config), select=shaping_config.select,
            top_k=rollout_config.top_k, fixed=bool(given), token_steps=shaping_config.token_steps_of(rollout_config),
            by_token=shaping_config.level != "sequence", logprobs=rollout_config.logprobs)
        return made, grid

    return roll


ROLLOUTS: list[dict[str, object]] = [{}, {"top_k": 0}, {"steps": 1}, {"solver": "rk4"}, {"temperature": 0.2}, {"length": 5}]


KINDS: list[tuple[str, str, dict[str, object]]] = [  # blind rollouts select nothing
    *(("shaped", "argmin", each) for each in ROLLOUTS), *(("blind", "argmin", each) for each in ROLLOUTS),
    ("shaped", "resample", {}), ("shaped", "resample", {"solver": "rk4"}),
]
FEATURES: list[dict[str, object]] = [
    {}, {"given": (0, 1, 4)}, {"level": "token"}, {"level": "sequence_to_token", "sweeps": 2, "tau": 0.25}, {"logprobs": True},
    {"given": (2,), "level": "token", "logprobs": True},
]
# All settings of a rollout with no newer one, and all newer ones with few of them; the rest is for a release.
CASES = [pytest.param(*kind, newer, id=f"{kind}-{newer}", marks=[pytest.mark.slow, pytest.mark.release] if newer and kind[2] not in ({}, {"steps": 1}) else ())
         for newer in FEATURES for kind in KINDS]


@pytest.mark.parametrize("source", ["mask", "uniform"])
@pytest.mark.parametrize(("arm", "select", "rollout", "newer"), CASES)
def test_a_rollout_passes_every_check(rolled, source, arm, select, rollout, newer):
    shaping = {"select": select, **{name: newer[name] for name in ("level", "sweeps", "tau") if name in newer}}
    made, grid = rolled(source, arm, rollout | {"logprobs": "logprobs" in newer}, shaping, given=newer.get("given", ()))
    assert format_version(grid) == (2 if newer else 1)
    table = shards.to_table(made, WORDS, arrow_schema(grid))
    assert check_shard(table, grid) == []
    read, _ = shards.decode(shards.encode(table, "ab"), "x")
    assert check_shard(read, grid) == []
    for index, log in enumerate(made):
        row_of(log)
        assert_equal(shards.to_log(read, index), log)


@pytest.mark.parametrize("shaping", [{"tau": 0.5}, {"shape_every": 5}, {"tau": 0.99}, {"candidates": 1}], ids=str)
def test_partly_shaped_rollouts_pass_every_check(rolled, shaping):
    made, grid = rolled("uniform", "shaped", {}, shaping)
    assert check_shard(shards.to_table(made, WORDS), grid) == []


def test_never_shaped_is_a_shaped_arm_of_no_shaped_step(rolled):
    """tau = 1 is allowed and shapes nothing: the log must be as sound as any other."""
    made, grid = rolled("mask", "shaped", {}, {"tau": 1.0})
    assert grid.shaped_steps == ()
    assert check_shard(shards.to_table(made, WORDS), grid) == []


def test_a_cold_rollout_with_a_top_k_passes_every_check(rolled):
    """Log-probabilities below what float16 holds (-65,504): the check of a top-k must survive them."""
    made, grid = rolled("mask", "blind", {"temperature": 1e-6, "top_k": 4})
    assert check_shard(shards.to_table(made, WORDS), grid) == []


def test_every_broken_choice_by_token_is_found(rolled):
    """One number of one row was changed after the fact."""
    made, grid = rolled("mask", "shaped", {"logprobs": True}, {"level": "sequence_to_token"})
    good, schema = made[2], arrow_schema(grid)
    assert check_shard(shards.to_table(made, WORDS, schema), grid) == []
    late = int(np.flatnonzero(np.isfinite(good.event_energy[:, 0]))[0])
    early = int(np.flatnonzero((good.event_step < 6) & (good.event_candidates != good.event_candidates[:, :1]).any(1))[0])
    other = next(k for k in range(4) if good.event_candidates[late, k] != good.event_token[late])

    def changed(name, event, value):
        values = getattr(good, name).copy()
        values[event] = value
        return replace(good, **{name: values})

    broken = {
        "event_token is not the chosen candidate": changed("event_choice", late, other),
        "event_choice outside 0..3": changed("event_choice", late, 4),
        "event_choice is not that of its step": changed("event_choice", early, (good.event_choice[early] + 1) % 4),
        "event_choice is not the lowest of event_energy": changed("event_energy", late, -good.event_energy[late]),
        "event_energy must be finite exactly where candidates are chosen one by one and differ":
            changed("event_energy", late, np.nan),
        "event_logprob is not a log-probability": changed("event_logprob", early, 0.5),
    }
    for what, log in broken.items():
        found = check_shard(shards.to_table([*made[:2], log, *made[3:]], WORDS, schema), grid)
        assert {fault.row for fault in found} == {2}
        assert what in {fault.what for fault in found}
    scored_early = check_shard(shards.to_table([changed("event_energy", early, 1.0)], WORDS, schema), grid)
    assert [fault.what for fault in scored_early] == [
        "event_energy must be finite exactly where candidates are chosen one by one and differ"]


@pytest.mark.parametrize(("name", "value"), [("event_choice", 1), ("event_energy", 2.0)])
def test_a_blind_row_says_that_nothing_was_chosen(rolled, name, value):
    made, grid = rolled("mask", "blind", {}, {"level": "token"})
    assert check_shard(shards.to_table(made, WORDS, arrow_schema(grid)), grid) == []
    values = getattr(made[1], name).copy()
    values[0] = value
    found = check_shard(shards.to_table([made[0], replace(made[1], **{name: values})], WORDS, arrow_schema(grid)), grid)
    assert [fault.row for fault in found] == [1]


def test_every_broken_event_is_found(rolled):
    """Story: one number of one row was changed after the fact."""
    made, grid = rolled("uniform", "shaped")
    good = made[2]
    choice = good.step_choice.copy()
    slot = int(np.flatnonzero(np.isfinite(good.step_energy[:, 0]))[0])
    choice[slot] = (choice[slot] + 1) % 4
    swapped = good.event_position.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    token = good.event_token.copy()
    token[0] = (token[0] + 1) % 100
    broken = {
        "token": replace(good, event_token=token), "choice": replace(good, step_choice=choice),
        "order": replace(good, event_position=swapped),
        "final": replace(good, tokens=(good.tokens + 1) % 100),
        "energy": replace(good, step_energy=good.step_energy * -1),
        "scored": replace(good, step_energy=np.full_like(good.step_energy, np.nan)),
        "step": replace(good, event_step=good.event_step + 1),
        "no final energy": replace(good, final_energy=None),
    }
    assert (good.event_step[0] == good.event_step[1])
    for name, log in broken.items():
        faults = check_shard(shards.to_table([*made[:2], log, *made[3:]], WORDS), grid)
        assert {fault.row for fault in faults} == {2}, name


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_every_broken_fixed_position_is_found(rolled, source):
    """Story: one number of one row of a dataset with prompts was changed after the fact."""
    made, grid = rolled(source, "shaped", given=(0, 1, 4))
    good = made[2]
    other = good.source_tokens.copy()
    other[1] += 1
    hidden = good.source_tokens.copy()
    hidden[4] = 9 if grid.mask_id is None else grid.mask_id
    broken = {
        "outside 0..": [replace(good, fixed_positions=np.array(given, np.int32)) for given in ([-1, 1, 4], [0, 1, grid.length])],
        "not rising": [replace(good, fixed_positions=np.array(given, np.int32)) for given in ([0, 4, 1], [0, 1, 1, 4])],
        "leave no position free": [replace(good, fixed_positions=np.arange(grid.length, dtype=np.int32))],
        "has an event": [replace(good, fixed_positions=np.sort(np.array([0, 1, 4, good.event_position[0]], np.int32)))],
        "another in source_tokens": [replace(good, source_tokens=other), replace(good, source_tokens=hidden)],
        "source_tokens is missing": [replace(good, source_tokens=None)],
    }
    if source == "mask":
        broken["not [MASK] exactly"] = [replace(good, fixed_positions=np.array([0, 1], np.int32))]
    for what, logs_of in broken.items():
        for log in logs_of:
            faults = check_shard(shards.to_table([*made[:2], log, *made[3:]], WORDS, arrow_schema(grid)), grid)
            assert {fault.row for fault in faults} == {2}, what
            assert any(what in fault.what for fault in faults), (what, faults)


def test_the_columns_are_those_of_the_settings(rolled):
    """A file with a column of version 2 in a dataset of version 1, or without one in a dataset of version 2, is told as that."""
    (made, grid), (plain, older) = rolled("mask", "shaped", given=(0,)), rolled("mask", "shaped")
    assert [fault.what for fault in check_shard(shards.to_table(made, WORDS, arrow_schema(grid)), older)] == ["columns differ from the schema: fixed_positions"]
    assert [fault.what for fault in check_shard(shards.to_table(plain, WORDS), grid)] == ["columns differ from the schema: fixed_positions"]


def test_text_is_the_decoded_tokens(tiny_models, rolled):
    vocabulary = checkpoint.load(tiny_models.mask).vocabulary
    made, _ = rolled("mask", "blind")
    texts = shards.to_table(made, vocabulary).column("text").to_pylist()
    assert texts == [vocabulary.decode(log.tokens.tolist()) for log in made]
    assert torch.tensor([len(t) for t in texts]).float().mean() > 1
