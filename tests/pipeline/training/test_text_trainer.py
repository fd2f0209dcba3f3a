"""Training on text, divided: over processes, over parts of a batch, with activations computed again, with compiled blocks."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.support import make_models, present, write_corpus
from tsdfm.pipeline.models.folder import load_denoiser
from tsdfm.pipeline.training.fit_compass import Setting, fit
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.pretrain import pretrain
from tsdfm.pipeline.training.text_trainer import TextTrainer
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.train import CompassConfig, PretrainConfig

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 16, "n_blocks": 2, "n_heads": 1}
OPTIM = {"steps": 8, "batch_size": 8, "warmup": 2, "log_every": 2, "lr": 1e-3}
KINDS = ["mask", "generalized KL", "uniform in parts", "ar", "nce"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a corpus and teachers."""
    root = tmp_path_factory.mktemp("text")
    write_corpus(root / "text.txt", 2000)
    make_models(root / "models")
    return root


def config_of(kind: str, root: Path, **division: Any) -> Any:
    corpus = {"path": str(root / "text.txt")}
    teacher = {"corpus": corpus, "vocab_size": 300, "length": 8, "shape": SHAPE, "cond_dim": 8, "optim": OPTIM}
    compass = {"teacher": str(root / "models" / "mask"), "corpus": {**corpus, "part": "first"}, "optim": OPTIM, "rollouts": 70,
               "rollout_steps": 4}
    return {
        "mask": lambda: PretrainConfig.model_validate({**teacher, **division}),
        "generalized KL": lambda: PretrainConfig.model_validate({**teacher, "objective": "generalized_kl", **division}),
        "uniform in parts": lambda: PretrainConfig.model_validate({**teacher, "source": "uniform", "micro_batches": 2, **division}),
        "ar": lambda: CompassConfig.model_validate({**compass, "kind": "ar", "shape": SHAPE, **division}),
        "nce": lambda: CompassConfig.model_validate({**compass, "kind": "nce", **division}),
    }[kind]()


def trained(config: PretrainConfig | CompassConfig, folder: Path, report: Any, place: Place) -> Any:
    if isinstance(config, PretrainConfig):
        return pretrain(config, folder, report, place=place)
    return fit(config, load_denoiser(Path(config.teacher)), Setting(folder, report, place=place))


def alone(config: PretrainConfig | CompassConfig, folder: Path, report: Any = lambda *_: None) -> Any:
    return trained(config, folder, report, Place(0, 1, CPU))


def _process(rank: int, world: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for kind, stop_at in [*((kind, None) for kind in KINDS), ("mask", 4), ("mask", None)]:
        lines: list[tuple[int, dict[str, float]]] = []

        def report(step: int, scalars: dict[str, float], lines: Any = lines, stop_at: Any = stop_at) -> bool:
            lines.append((step, scalars))
            return step == stop_at

        folder = Path(root) / ("stopped" if stop_at or (Path(root) / "stopped").exists() else kind)
        made = trained(config_of(kind, Path(root), workers=world), folder, report, Place(rank, world, CPU))
        if made is not None:
            torch.save(made.network.state_dict(), folder / f"{rank}.pt")
            (folder / f"{rank}.json").write_text(json.dumps([lines, made.record.model_dump(mode="json")]))
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(root):
    """The folder of what two processes made of every kind, and, in `stopped`, of one that was stopped and went on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    spawn(_process, (2, port, str(root)), nprocs=2)
    return root


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of weights, as a share of the way from the start to the first."""
    way = sum(float((one[key] - start[key]).square().sum()) for key in one)
    return float((sum(float((one[key] - other[key]).square().sum()) for key in one) / way) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_updates_of_one(kind, pair, tmp_path):
    lines: list[tuple[int, dict[str, float]]] = []
    config = config_of(kind, pair)
    made = alone(config, tmp_path / "whole", lambda step, scalars: lines.append((step, scalars)))
    first, second = (torch.load(pair / kind / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    frozen = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e-30})})
    start = alone(frozen, tmp_path / "start").network.state_dict()
    assert apart(made.network.state_dict(), first, start) < 5e-3
    said, record = json.loads((pair / kind / "0.json").read_text())
    assert json.loads((pair / kind / "1.json").read_text())[0] == []  # the first alone speaks
    assert [step for step, _ in said] == [step for step, _ in lines]
    for (_, mine), (_, theirs) in zip(lines, said, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    scores = {name: value for name, value in made.record.model_dump(mode="json").items() if name.startswith("held_out")}
    assert scores
    for name, value in scores.items():
        if isinstance(value, float):
            assert record[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_to_the_same_bits(pair):
    stopped, whole = (torch.load(pair / name / "0.pt", weights_only=True) for name in ("stopped", "mask"))
    assert all(torch.equal(stopped[key], whole[key]) for key in whole)
    assert len(list((pair / "mask" / "tensorboard").iterdir())) == 1  # the first alone writes


@pytest.mark.parametrize("kind", ["mask", "ar"])
def test_parts_and_activations_computed_again_change_nothing_but_last_bits(kind, root, tmp_path):
    whole = alone(config_of(kind, root), tmp_path / "whole").network.state_dict()
    for name, division in dict[str, dict[str, Any]]({"parts": {"micro_batches": 4}, "again": {"recompute": True}}).items():
        other = alone(config_of(kind, root, **division), tmp_path / name).network.state_dict()
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5)


def test_recompute_keeps_fewer_activations(root, tmp_path):
    """Bytes that autograd holds at the end of a forward pass."""
    network = present(alone(config_of("mask", root), tmp_path)).network
    network.train().requires_grad_(True)

    def held() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            network.hidden(torch.zeros(4, 8, dtype=torch.long), torch.full((4,), 0.5)).sum()
        return sum(sizes)

    before = held()
    for block in network.trunk.blocks:
        block.recompute = True
    assert held() < before / 2


def test_how_the_work_is_divided_may_change_when_a_run_goes_on(root, tmp_path):
    assert alone(config_of("mask", root), tmp_path, lambda step, _: step == 4) is None
    made = alone(config_of("mask", root, micro_batches=2, workers=2, address="auto", recompute=True), tmp_path)
    assert made.record.config.workers == 2


@pytest.mark.parametrize("backend", [pytest.param("aot_eager", marks=pytest.mark.slow), pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.release])])
def test_compiled_blocks_give_the_same_model(root, tmp_path, monkeypatch, backend):
    """Traced as the compiler would have them, without it; and by the compiler, which takes minutes."""
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # more are processes, each with an import of torch
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: real(self, backend=backend, **options))
    whole = alone(config_of("mask", root), tmp_path / "whole").network.state_dict()
    compiled = alone(config_of("mask", root, compile=True), tmp_path / "compiled").network
    for key, value in whole.items():
        torch.testing.assert_close(compiled.state_dict()[key], value, rtol=1e-2, atol=1e-4)


def test_a_batch_that_does_not_divide_is_refused(root):
    with pytest.raises(ValueError, match=r"optim.batch_size: 8 is no multiple of workers \* micro_batches \(6\)"):
        config_of("mask", root, workers=3, micro_batches=2)


@pytest.mark.parametrize(("kind", "weight", "figure"), [
    ("mask", torch.nan, "held_out_cross_entropy is nan"), ("ar", torch.nan, "held_out_perplexity is inf"),
    ("ar", 1e6, "held_out_perplexity is inf")])
def test_a_figure_that_is_not_finite_is_no_defect_and_keeps_the_training(kind, weight, figure, root, tmp_path, monkeypatch):
    run = TextTrainer.run

    def ruined(self: TextTrainer, *arguments: Any) -> bool:
        done = run(self, *arguments)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * weight)
        return done

    monkeypatch.setattr(TextTrainer, "run", ruined)
    with pytest.raises(WorkError, match=f"{figure} at update 8; the last checkpoint in {tmp_path} is kept"):
        alone(config_of(kind, root), tmp_path)
