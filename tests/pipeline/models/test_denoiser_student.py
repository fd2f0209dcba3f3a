"""The student at step 0 is its teacher, and what a step embedding costs at inference."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tsdfm.kernels.linear as kernel
from tests.support import LENGTH, make_dataset, scatter_weights
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import embedded, load, load_denoiser
from tsdfm.pipeline.models.layers import StepEmbedding
from tsdfm.pipeline.models.student import student_of
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import DenoiserConfig

SOURCES = ["mask", "uniform"]
DTS = [None, 1.0, 0.5, 1 / 8, 1 / 1024]


def inputs(config, batch=5):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(config.vocab_size, (batch, config.length), generator=generator)
    return x, torch.rand(batch, generator=generator)


def sizes(dt, batch=5):
    return None if dt is None else torch.full((batch,), dt)


@pytest.fixture(scope="module", params=SOURCES)
def teacher(request, tiny_models):
    return load_denoiser(getattr(tiny_models, request.param)).network


def trained(student):
    """Stands for a student after training: no weight is zero any more."""
    scatter_weights(student, 9)
    return student


@pytest.mark.parametrize("dt", DTS)
def test_the_new_student_is_its_teacher_bit_for_bit(teacher, dt):
    student = student_of(teacher).eval()
    x, t = inputs(teacher.config)
    with torch.no_grad():
        assert torch.equal(student(x, t, sizes(dt)), teacher(x, t))
        assert torch.equal(student(x, t, torch.rand(5).clamp_min(1e-4)), teacher(x, t))


def test_only_the_step_embedding_is_new(teacher):
    student = student_of(teacher)
    assert student.config == teacher.config.model_copy(update={"step_size": True})
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        if name.startswith("trunk.step_embedding."):
            assert name not in theirs
        else:
            assert torch.equal(value, theirs.pop(name)), name
    assert not theirs


def test_the_student_shares_no_memory_with_its_teacher_and_trains(teacher):
    """The teacher was opened without gradients; its copy must learn, every parameter of it, and leave the teacher alone."""
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = student_of(teacher)
    x, t = inputs(teacher.config)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    for _ in range(2):  # the first layer of the step embedding sees a gradient once the second has left zero
        optimizer.zero_grad()
        student(x, t, sizes(0.25)).log_softmax(-1)[..., 0].sum().backward()
        optimizer.step()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_step_embedding_starts_at_zero_and_then_tells_sizes_apart():
    torch.manual_seed(0)
    fresh, dts = StepEmbedding(10), 2.0 ** -torch.arange(11)
    assert (fresh(dts) == 0).all()
    scatter_weights(fresh, 0)
    out = fresh(dts)
    assert out.shape == (11, 10)
    assert torch.isfinite(fresh(torch.tensor([1.0, 1 / 65536]))).all()
    assert (torch.cdist(out, out) + torch.eye(11) > 1e-2).all()


def test_a_trained_student_looks_at_the_size_of_its_step(teacher):
    student = trained(student_of(teacher)).eval()
    x, t = inputs(teacher.config)
    with torch.no_grad():
        outputs = [student(x, t, sizes(dt)) for dt in DTS]
        assert torch.equal(student(x, t), outputs[0])
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().amax() > 1e-3


def test_a_teacher_ignores_the_size_of_the_step(teacher):
    x, t = inputs(teacher.config)
    with torch.no_grad():
        assert torch.equal(teacher(x, t, sizes(0.5)), teacher(x, t))


def test_the_student_of_a_student_is_copied_whole(teacher):
    first = trained(student_of(teacher))
    second = student_of(first)
    assert second.config == first.config
    for (name, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_sampling_with_n_steps_names_steps_of_one_nth(source, steps, tiny_models):
    """Whatever the solver, and the time given lies on the grid of n steps (euler)."""
    student = trained(student_of(load_denoiser(getattr(tiny_models, source)).network)).eval()
    hidden = student.hidden
    for solver in ("euler", "rk4"):
        seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        student.hidden = lambda x, t, dt=None, seen=seen: (seen.append((t, dt)), hidden(x, t, dt))[1]
        roll_out(student, None, RolloutConfig(steps=steps, solver=solver), ShapingConfig(candidates=1), range(3), "blind")
        assert seen
        for t, dt in seen:
            assert dt is not None
            assert (dt == torch.tensor(1 / steps)).all()
            if solver == "euler":
                torch.testing.assert_close(t * steps, (t * steps).round(), rtol=0, atol=1e-5)


def saved(folder, teacher_folder):
    opened = load_denoiser(teacher_folder)
    network = opened.network
    checkpoint.save(folder, trained(student_of(network)), opened.vocabulary, None, card="# A student\n")
    return folder


@pytest.mark.parametrize("source", SOURCES)
def test_a_saved_student_opens_and_writes(source, cli, tmp_path, tiny_models):
    folder = saved(tmp_path / "student", getattr(tiny_models, source))
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json"]
    assert load_denoiser(folder).network.config.step_size is True
    texts = {}
    for steps in (1, 4):
        outcome = cli("sample", "--model", folder, "--steps", steps, "-n", 3, "--json")
        assert outcome.code == 0, outcome.stderr
        texts[steps] = json.loads(outcome.stdout)["texts"]
        assert len(texts[steps]) == 3
    assert texts[1] != texts[4]


@pytest.mark.parametrize("source", SOURCES)
def test_a_student_may_be_the_teacher_of_a_next_round(source, cli, tmp_path, tiny_models):
    folder = saved(tmp_path / "student", getattr(tiny_models, source))
    manifest = make_dataset(tmp_path / "out", tiny_models, teacher=str(folder), compass="denoiser")
    assert manifest.identity.teacher.fingerprint == load(folder).fingerprint
    assert manifest.teacher == str(folder)
    outcome = cli("verify", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    other = make_dataset(tmp_path / "other", tiny_models, teacher=str(getattr(tiny_models, source)), compass="denoiser")
    assert other.identity.teacher.fingerprint != manifest.identity.teacher.fingerprint


@pytest.mark.parametrize("source", SOURCES)
def test_inference_costs_what_the_embedded_teacher_costs(source, monkeypatch):
    """Parameters and forward FLOPs, exactly counted, of the networks that ship: within 2 %."""
    config = DenoiserConfig.model_validate_json((embedded(f"teacher-{source}") / "config.json").read_text())
    teacher = Denoiser(config)
    student = student_of(teacher)
    parameters = [sum(p.numel() for p in network.parameters()) for network in (teacher, student)]
    assert parameters[0] < parameters[1] <= 1.02 * parameters[0]
    assert parameters[1] - parameters[0] == 256 * config.cond_dim + config.cond_dim + config.cond_dim**2 + config.cond_dim
    x, t = torch.zeros(4, config.length, dtype=torch.long), torch.zeros(4)
    monkeypatch.setattr(kernel, "_by_onednn", lambda x, weight: False)  # oneDNN's products are counted by nobody
    flops = []
    for network, dt in ((teacher, None), (student, torch.full((4,), 1 / 8))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, t, dt)
        flops.append(counter.get_total_flops())
    assert flops[0] > 2 * 4 * config.length * config.hidden_size * config.vocab_size  # at least the head
    assert flops[0] < flops[1] <= 1.02 * flops[0]


def test_the_length_of_the_tiny_models_is_what_these_tests_assume(teacher):
    assert teacher.config.length == LENGTH


@pytest.mark.parametrize("conditioning", ["t", "sigma", "fused"])
def test_conditioning_is_written_only_where_it_is_not_t(conditioning):
    """It came later, and fingerprints are taken of config.json's bytes."""
    config = DenoiserConfig(vocab_size=9, length=4, source="uniform", step_size=True, conditioning=conditioning)
    written = json.loads(config.model_dump_json())
    assert written.keys() == DenoiserConfig.model_fields.keys() - {"masked_lm", "clocks", "end_id"} - ({"conditioning"} if conditioning == "t" else set())
    assert DenoiserConfig.model_validate(written) == config


def test_an_end_is_written_only_where_there_is_one():
    config = DenoiserConfig(vocab_size=9, length=4, mask_id=8)
    ending = config.model_copy(update={"end_id": 0})
    assert "end_id" not in json.loads(config.model_dump_json())
    assert json.loads(ending.model_dump_json())["end_id"] == 0
    assert (config.texts, ending.texts) == ("packed", "padded")


def test_fused_conditioning_needs_a_step_size():
    with pytest.raises(ValueError, match="step_size"):
        DenoiserConfig(vocab_size=9, length=4, source="uniform", conditioning="fused")
