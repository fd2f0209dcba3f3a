"""How networks are run: bfloat16 narrows what is computed and nothing that is told, compiled blocks give the same, sizes by device."""

import shutil

import pytest
import torch

from tests.support import present
from tsdfm.pipeline.flow.compass import CausalCompass, ContrastCompass, NceCompass
from tsdfm.pipeline.models.computing import AT_ONCE, at_once, compile_trunk, compute_in, prepare
from tsdfm.pipeline.models.folder import load, load_denoiser
from tsdfm.pipeline.models.student import student_of
from tsdfm.schemas.base import InputError

LENGTH = 16  # of the tiny models
NEAR = 0.05  # what 8 bits of a mantissa hold, after two blocks


@pytest.fixture
def tokens():
    return torch.randint(299, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def dtypes(network):
    return {name: weight.dtype for name, weight in network.named_parameters()}


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_a_denoiser_in_bfloat16(tiny_models, tokens, name):
    """Its matrices and hidden states are narrow; what is made of a time, and the head's bias, is not."""
    wide, narrow = (load_denoiser(getattr(tiny_models, name)).network for _ in range(2))
    compute_in(narrow, "bfloat16")
    for parameter, dtype in dtypes(narrow).items():
        kept = "time_embedding" in parameter or "step_embedding" in parameter or parameter == "head.bias"
        assert dtype == (torch.float32 if kept else torch.bfloat16), parameter
    t = torch.tensor([0.0, 0.4, 0.9])
    found, expected = narrow.hidden(tokens, t), wide.hidden(tokens, t)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1 * float(expected.std()))


def test_a_student_in_bfloat16_is_told_its_steps(tiny_models, tokens):
    student = student_of(load_denoiser(tiny_models.mask).network).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in present(student.trunk.step_embedding).parameters():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    compute_in(student, "bfloat16")
    t = torch.full((3,), 0.5)
    one, other = (student.hidden(tokens, t, torch.full((3,), dt)) for dt in (0.5, 0.01))
    assert one.dtype == torch.bfloat16
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("name", "kind"), [("ar", CausalCompass), ("nce", NceCompass), ("contrast", ContrastCompass)])
def test_energies_are_float32_in_bfloat16(tiny_models, tokens, name, kind):
    """And finer than bfloat16 could tell them: candidates that differ little have energies that differ."""
    wide, narrow = (load(getattr(tiny_models, name)).network for _ in range(2))
    compute_in(narrow, "bfloat16")
    states = tokens[:, None].repeat(1, 6, 1)
    states[:, range(1, 6), range(5)] = (states[:, range(1, 6), range(5)] + 1) % 299
    found, expected = (kind(network).energy(states, torch.full((3,), 0.5), None) for network in (narrow, wide))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=NEAR, atol=NEAR)
    assert not torch.equal(found, found.bfloat16().float())
    assert not torch.equal(found, expected)


def test_float32_is_what_was_opened(tiny_models):
    network = load_denoiser(tiny_models.mask).network
    before = {name: id(weight) for name, weight in network.named_parameters()}
    prepare(network, "float32", False)
    assert {name: id(weight) for name, weight in network.named_parameters()} == before
    assert set(dtypes(network).values()) == {torch.float32}
    assert all(block._compiled_call_impl is None for block in network.trunk.blocks)


def test_a_compiled_trunk_gives_the_same(tiny_models, tokens, monkeypatch):
    """By the backend that traces and generates no code, which would take a minute; batches of any size."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: real(self, backend="aot_eager", **options))
    plain, compiled = (load_denoiser(tiny_models.mask).network for _ in range(2))
    prepare(compiled, "float32", True)
    assert all(block._compiled_call_impl is not None for block in compiled.trunk.blocks)
    with torch.no_grad():
        for rows in (3, 2):
            t = torch.full((rows,), 0.5)
            torch.testing.assert_close(compiled.hidden(tokens[:rows], t), plain.hidden(tokens[:rows], t))


def test_nothing_is_compiled_without_a_compiler(tiny_models, monkeypatch, tmp_path):
    network = load_denoiser(tiny_models.mask).network
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"^compile: .*C\+\+ compiler.*leave out --compile"):
        compile_trunk(network)
    monkeypatch.setenv("CXX", "/nowhere/compiler")
    with pytest.raises(InputError, match="/nowhere/compiler"):
        compile_trunk(network)
    monkeypatch.setenv("CXX", str(shutil.which("true", path="/bin:/usr/bin")))
    compile_trunk(network)


def test_the_numbers_of_a_cpu_are_those_of_the_first_datasets():
    """With others the same identity would give other bytes."""
    numbers = at_once(torch.device("cpu"))
    assert (numbers.suffix_tokens, numbers.compass_tokens, numbers.judge_tokens) == (1024, 8192, 4096)
    assert numbers.suffix_texts >= numbers.suffix_tokens  # a suffix has a token, so the tokens alone decide


def test_a_gpu_takes_more_at_once():
    cpu, gpu = AT_ONCE["cpu"], at_once(torch.device("cuda"))
    for name in ("ring_numbers", "suffix_tokens", "compass_tokens", "judge_tokens"):
        assert getattr(gpu, name) >= 8 * getattr(cpu, name)
