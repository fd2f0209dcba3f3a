"""Masked language models of transformers as teachers: their own logits, students that begin as they are, refusals in one line."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.foreign import bert_like, masked_lm
from tests.support import make_dataset, present
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.computing import compute_in
from tsdfm.pipeline.models.foreign.importer import import_teacher
from tsdfm.pipeline.models.layers import StepEmbedding
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.training.distill import distill
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim
from tsdfm.schemas.import_teacher import ImportConfig

IDS = 57
TOKENS = torch.randint(5, IDS, (3, 9), generator=torch.Generator().manual_seed(7))
T = torch.tensor([0.0, 0.3, 0.97])
AROUND = torch.cat([torch.full((3, 1), 2), TOKENS, torch.full((3, 1), 3)], 1)


def bring(folder, **options):
    return import_teacher(ImportConfig(checkpoint=str(folder), **options))


def refusal(folder, **options):
    with pytest.raises(InputError) as caught:
        bring(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "length"), [("Bert", 38), ("ModernBert", 38), ("Roberta", 36), ("Albert", 38)])
def test_it_gives_the_logits_of_the_library_at_every_time(tmp_path, kind, length):
    model = masked_lm(tmp_path, kind)
    made = bring(tmp_path)
    checkpoint.save(tmp_path / "teacher", made.network, made.vocabulary, made.record)
    opened = checkpoint.load_denoiser(tmp_path / "teacher")
    config = opened.network.config
    assert (config.source, config.mask_id, config.vocab_size, config.length) == ("mask", 4, IDS, length)
    expected = model(input_ids=AROUND).logits[:, 1:-1, :IDS]
    assert expected.std() > 0.1
    torch.testing.assert_close(opened.network(TOKENS, T), expected, rtol=0, atol=1e-5)
    assert opened.vocabulary.tokenizer.token_to_id("[MASK]") == 4
    said = " ".join(made.assumed)
    assert all(part in said for part in ("[CLS] TEXT [SEP]", "7 of 64 rows", f"{length} tokens"))


def test_a_model_of_padded_texts_ends_them_at_the_token_that_is_named(tmp_path, cli):
    """[SEP] unless --eos says otherwise; what was said is printed, and texts of the teacher end there."""
    masked_lm(tmp_path / "source", "Bert")
    for eos in (None, "[PAD]"):
        done = cli("import-teacher", tmp_path / "source", "--length", 12, "--texts", "padded", "--out", tmp_path / "teacher",
                   *([] if eos is None else ["--eos", eos]))
        assert done.code == 0, done.stderr
        assert "padded texts" in done.stderr
        opened = checkpoint.load_denoiser(tmp_path / "teacher")
        assert opened.network.config.end_id == opened.vocabulary.tokenizer.token_to_id(eos or "[SEP]")
    done = cli("sample", "--model", tmp_path / "teacher", "--steps", 12, "-n", 30, "--json")
    report = json.loads(done.stdout)
    assert len(report["ended"]) == 30
    assert all(ended == (size < 12) or size == 12 for ended, size in zip(report["ended"], report["tokens"], strict=True))


def test_a_student_begins_as_its_teacher_and_learns_its_step(tmp_path):
    masked_lm(tmp_path, "Bert")
    teacher = bring(tmp_path).network
    student, dt = student_of(teacher).eval(), torch.full((3,), 0.25)
    step = student.trunk.step_embedding
    assert isinstance(step, StepEmbedding)
    last = step.mlp[2]
    torch.testing.assert_close(student(TOKENS, T, dt), teacher(TOKENS, T), rtol=0, atol=0)
    student(TOKENS, T, dt).square().mean().backward()
    assert all(parameter.grad is not None for parameter in last.parameters())
    torch.nn.init.normal_(next(last.parameters()))
    assert not torch.allclose(student(TOKENS, T, dt), student(TOKENS, T, torch.ones(3)), atol=1e-3)


@pytest.mark.parametrize("kind", ["Bert", "ModernBert"])
def test_it_computes_in_bfloat16(tmp_path, kind):
    masked_lm(tmp_path, kind)
    student = student_of(bring(tmp_path).network).eval()
    exact = student.hidden(TOKENS, T, T + 0.01)
    compute_in(student, "bfloat16")
    narrow = student.hidden(TOKENS, T, T + 0.01)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow.float() - exact).abs().mean() / exact.abs().mean()) < 0.05


@pytest.mark.parametrize("kind", ["Bert", "ModernBert"])
def test_from_import_to_evaluation(tmp_path, kind, cli, tiny_models):
    masked_lm(tmp_path / "source", kind)
    teacher, data, student = (tmp_path / name for name in ("teacher", "data", "student"))
    done = cli("import-teacher", tmp_path / "source", "--length", 12, "--out", teacher)
    assert done.code == 0, done.stderr
    made: dict[str, Any] = {"teacher": str(teacher), "compass": "denoiser", "trajectories": 8, "rollout": {"steps": 4}}
    make_dataset(data, tiny_models, **made)
    config = DistillConfig(data=DataConfig(paths=[str(data)]), optim=DistillOptim(steps=2, batch_size=4))
    distill(config, student)
    done = cli("evaluate", "--model", student, "--model", teacher, "--steps", 2, "-n", 2, "--no-reference")
    assert done.code == 0, done.stderr
    learnt = checkpoint.load_model(str(student)).network.config
    assert (learnt.step_size, learnt.conditioning, learnt.length) == (True, "none", 12)
    with pytest.raises(InputError, match="init_blocks"):
        distill(config.model_copy(update={"init_blocks": 1}), tmp_path / "smaller")
    longer = make_dataset(tmp_path / "longer", tiny_models, **made | {"rollout": {"steps": 4, "length": 13}})
    assert present(longer.identity.blocks).per_text == 2  # written in blocks


def changed(folder, **facts):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def test_what_cannot_be_a_teacher_is_refused_in_one_line(tmp_path):
    masked_lm(tmp_path, "Bert")
    assert "40 positions" in refusal(tmp_path, length=39)
    assert "leave out --weights" in refusal(tmp_path, weights="ema")
    (tmp_path / "ema.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    for folder, named in ((tmp_path, {"file": "ema.safetensors"}), (tmp_path / "ema.safetensors", {})):
        assert "and not ema.safetensors; put it under that name into a folder of its own" in refusal(folder, **named)
    (tmp_path / "ema.safetensors").unlink()
    assert "can't end a text" in refusal(tmp_path, eos="[MASK]")
    assert "no such tokenizer" in refusal(tmp_path, tokenizer=str(tmp_path / "none.json"))
    assert "--mask" in refusal(tmp_path, mask="<hidden>")
    (tmp_path / "tokenizer.json").write_text(bert_like("<hidden>").to_str())
    assert "no token [MASK] or <mask>" in refusal(tmp_path)
    assert bring(tmp_path, mask="<hidden>").network.config.mask_id == 4
    changed(tmp_path, is_decoder=True)
    assert "is a decoder" in refusal(tmp_path)
    changed(tmp_path, is_decoder=False, num_hidden_layers=3)
    assert "larger model than its files hold" in refusal(tmp_path)
    changed(tmp_path, num_hidden_layers=2, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "quantised" in refusal(tmp_path)


def test_a_checkpoint_without_the_head_is_refused(tmp_path):
    masked_lm(tmp_path, "Bert")
    file = tmp_path / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if ".transform." not in name}
    save_file(weights | {"ballast": torch.zeros(4096)}, file, {"format": "pt"})
    assert "its files lack" in refusal(tmp_path)


def test_code_of_a_repository_is_never_run(tmp_path):
    masked_lm(tmp_path, "Bert")
    (tmp_path / "harm.py").write_text("raise SystemExit(9)")
    changed(tmp_path, model_type="harm", auto_map={"AutoConfig": "harm.Config", "AutoModelForMaskedLM": "harm.Model"})
    assert "no code of a repository is run" in refusal(tmp_path, layout="masked-lm")
    assert "no code of a repository is run" in refusal(tmp_path)


def test_a_config_that_no_longer_fits_is_refused_when_it_is_opened(tmp_path):
    masked_lm(tmp_path, "Bert")
    made = bring(tmp_path)
    checkpoint.save(tmp_path / "teacher", made.network, made.vocabulary, made.record)
    file = tmp_path / "teacher" / "config.json"
    sound = json.loads(file.read_text())
    for harm, said in (({"length": 39}, "positions"), ({"conditioning": "t"}, "masked language model"), ({"n_blocks": 3}, "num_hidden_layers"),
                       ({"masked_lm": sound["masked_lm"] | {"config": {"model_type": "none"}}}, "transformers can't build"),
                       ({"masked_lm": sound["masked_lm"] | {"config": sound["masked_lm"]["config"] | {"hidden_size": 64}}}, "config wants")):
        file.write_text(json.dumps(sound | harm))
        with pytest.raises(InputError, match=said) as caught:
            checkpoint.load(tmp_path / "teacher")
        assert "\n" not in str(caught.value)
