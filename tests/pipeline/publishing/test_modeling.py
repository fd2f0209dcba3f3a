"""What transformers opens of a published student: the same logits, the same texts, and no trace of this package."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests import foreign
from tests.support import LENGTH, SHAPE, packages_without_ours, present, scatter_weights, vocabulary
from tsdfm.pipeline.evaluation.samples import sample
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.texts.blocks import Extent, roll_out_blocks
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import load_denoiser, save
from tsdfm.pipeline.models.foreign.importer import import_teacher
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.publishing.bundle import bundled
from tsdfm.pipeline.publishing.student import transformers_files
from tsdfm.pipeline.text.ends.written import text_of
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.import_teacher import ImportConfig
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.sample import SampleConfig

pytest.importorskip("transformers")

STUDENTS: dict[str, dict[str, Any]] = {
    "mask": {"source": "mask"}, "mask-spaced": {"source": "mask", "clocks": "spaced", "kappa_exponent": 2.0},
    "uniform": {"source": "uniform"}, "uniform-spaced": {"source": "uniform", "clocks": "spaced"},
    "uniform-even": {"source": "uniform", "clocks": "even"}, "sigma": {"source": "mask", "conditioning": "sigma"},
    "fused": {"source": "uniform", "conditioning": "fused"}, "ending": {"source": "mask", "end_id": 0},
    "uniform-ending": {"source": "uniform", "end_id": 0}, "duo": {"source": "uniform", "conditioning": "sigma"},
    "bert": {"source": "mask", "kind": "Bert"}, "modernbert": {"source": "mask", "kind": "ModernBert"},
}
STEPS, NUMBER, SEED, TEMPERATURE = 8, 3, 5, 0.7
SETTINGS = json.dumps({"steps": STEPS, "number": NUMBER, "seed": SEED, "temperature": TEMPERATURE})
# Run by a Python that finds all packages but this one: no file of it, of its installation or of its metadata.
PROBE = """
import importlib.metadata, importlib.util, json, sys
sys.path.append(sys.argv.pop(1))
assert importlib.util.find_spec("tsdfm") is None
assert "tsdfm-pipeline" not in [each.name for each in importlib.metadata.distributions()]
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
found, settings = {}, json.loads(sys.argv[1])
for name in sys.argv[2:]:
    model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    length, rows = model.config.length, model.config.vocab_size
    x = torch.arange(2 * length).view(2, length) * 37 % rows
    t, dt = torch.tensor([0.25, 0.75]), torch.tensor([0.125, 0.25])
    with torch.no_grad():
        logits, plain = model(x, t=t, dt=dt).logits, model(x, t=t).logits
    found[name] = {
        "logits": logits.tolist(), "plain": plain.tolist(), "tokens": model.generate(**settings).tolist(),
        "prompted": model.generate([5, 6, 7], **settings).tolist(), "special": tokenizer.all_special_ids,
        "ids": tokenizer("the quick brown fox", add_special_tokens=False).input_ids,
        "text": tokenizer.decode([5, 6, 7]), "kinds": [str(p.dtype) for p in model.parameters()][:1],
    }
    if tokenizer.mask_token:
        fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
        filled = fill("the quick " + tokenizer.mask_token, top_k=2, tokenizer_kwargs={"add_special_tokens": False})
        found[name]["filled"] = [each["token"] for each in filled]
assert "tsdfm" not in sys.modules
print(json.dumps(found))
"""


def probed(*names, home):
    """What the probe found of each model."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", PROBE, str(packages_without_ours(home)), SETTINGS, *map(str, names)], capture_output=True, text=True,
                          check=False, env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Folders of students as a user has them, and of what is published of them."""
    root, words = tmp_path_factory.mktemp("students"), vocabulary()
    for seed, (name, changes) in enumerate(STUDENTS.items()):
        if "kind" in changes:
            foreign.masked_lm(root / "library" / name, changes["kind"])
            made = import_teacher(ImportConfig(checkpoint=str(root / "library" / name), length=LENGTH))
            network, vocab = student_of(made.network), made.vocabulary
            scatter_weights(present(network.trunk.step_embedding), seed)
        else:
            mask = changes["source"] == "mask"
            config = DenoiserConfig(**SHAPE | {"n_blocks": 1 + seed % 2}, vocab_size=words.size - (not mask), length=LENGTH, cond_dim=16,
                                    mask_id=words.mask_id if mask else None, step_size=True, **changes)
            network, vocab = Denoiser(config), words
            scatter_weights(network, seed)
            if config.end_id is not None:
                assert config.end_id == words.eos_id
                with torch.no_grad():
                    network.head.weight.mul_(0.1)
                    network.head.bias.zero_()[words.eos_id] = 4
        save(root / name, network, vocab, None, half=name == "mask")
        published = root / "published" / name
        published.mkdir(parents=True)
        for each in ("model.safetensors", "tokenizer.json"):
            (published / each).write_bytes((root / name / each).read_bytes())
        for each, data in transformers_files(load_denoiser(root / name), (root / name / "config.json").read_bytes()).items():
            (published / each).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def found(students, tmp_path_factory):
    folders = [students / "published" / name for name in STUDENTS]
    return probed(*folders, home=tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_same_logits_and_the_same_texts(students, found, name):
    folder = students / "published" / name
    theirs, ours = found[str(folder)], load_denoiser(students / name)
    network, rows = ours.network, ours.network.config.vocab_size
    x = torch.arange(2 * LENGTH).view(2, LENGTH) * 37 % rows
    t, dt = torch.tensor([0.25, 0.75]), torch.tensor([0.125, 0.25])
    for kind, logits in (("logits", network(x, t, dt)), ("plain", network(x, t))):
        torch.testing.assert_close(torch.tensor(theirs[kind]), logits, atol=1e-6 * float(logits.abs().max()), rtol=0)
    assert theirs["kinds"] == ["torch.float32"]
    config = SampleConfig.model_validate({"model": str(students / name), "number": NUMBER, "rollout": {
        "steps": STEPS, "seed": SEED, "temperature": TEMPERATURE}})
    end_id, tokens = network.config.end_id, theirs["tokens"]
    assert [text_of(ours.vocabulary, row, end_id) for row in tokens] == sample(config)
    if end_id is not None:
        assert any(end_id in row[1:-2] for row in tokens)
        for row in [*tokens, *theirs["prompted"]]:
            end = row.index(end_id, 1) if end_id in row[1:] else LENGTH
            assert set(row[end:]) <= {end_id}


@pytest.mark.parametrize("name", STUDENTS)
def test_texts_that_go_on_from_a_prompt_are_the_same_too(students, found, name):
    theirs, ours = found[str(students / "published" / name)], load_denoiser(students / name).network
    given = torch.tensor([[5, 6, 7, *[-1] * (LENGTH - 3)]] * NUMBER)
    rollout = RolloutConfig(steps=STEPS, seed=SEED, temperature=TEMPERATURE)
    extent = Extent(LENGTH, LENGTH, end_id=ours.config.end_id)
    assert theirs["prompted"] == roll_out_blocks(ours, rollout, range(NUMBER), Use.MEASURE, extent, given).tokens.tolist()
    assert theirs["prompted"] != theirs["tokens"]


def test_a_student_in_16_bits_writes_too(students):
    from transformers import AutoModelForMaskedLM

    for name in ("mask-spaced", "bert"):
        model = AutoModelForMaskedLM.from_pretrained(students / "published" / name, trust_remote_code=True, dtype=torch.bfloat16)
        assert model.generate([5, 6], steps=2).shape == (1, LENGTH)


def test_the_tokenizer_is_the_students(students, found):
    for name, changes in STUDENTS.items():
        theirs, words = found[str(students / "published" / name)], load_denoiser(students / name).vocabulary
        assert theirs["ids"] == words.encode(["the quick brown fox"])[0]
        assert theirs["text"] == words.decode([5, 6, 7])
        assert set(theirs["special"]) == {words.eos_id} | ({words.mask_id} if changes["source"] == "mask" else set())


def test_masks_are_filled(students, found):
    """By the library's own pipeline, with the posterior at the share of the text that is written."""
    for name, changes in STUDENTS.items():
        theirs, ours = found[str(students / "published" / name)], load_denoiser(students / name)
        if changes["source"] == "mask":
            x = torch.tensor([[*ours.vocabulary.encode(["the quick "])[0], ours.vocabulary.mask_id]])
            t = torch.tensor([(x.shape[1] - 1) / x.shape[1]]) ** (1 / ours.network.config.kappa_exponent)
            assert theirs["filled"] == ours.network(x, t)[0, -1].topk(2).indices.tolist()


def test_the_package_opens_it_as_the_same_model(students):
    for name in STUDENTS:
        mine, published = load_denoiser(students / name), load_denoiser(students / "published" / name)
        assert (published.fingerprint, published.network.config) == (mine.fingerprint, mine.network.config)
        again = transformers_files(published, (students / name / "config.json").read_bytes())
        assert again["config.json"] == (students / "published" / name / "config.json").read_bytes()


def test_a_misspelt_field_is_still_refused(students, tmp_path):
    fields = json.loads((students / "published" / "mask" / "config.json").read_text())
    for each in ("model.safetensors", "tokenizer.json"):
        (tmp_path / each).write_bytes((students / "mask" / each).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"lenght": 3}))
    with pytest.raises(InputError, match="lenght"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "bert"}))
    with pytest.raises(InputError, match="model_type"):
        load_denoiser(tmp_path)


def test_the_class_knows_every_field_of_a_config():
    from tsdfm.pipeline.publishing.modeling_tsdfm import USUAL

    fields = {name: each.default for name, each in DenoiserConfig.model_fields.items() if name != "kind"}
    assert USUAL.keys() == fields.keys()
    assert {name: USUAL[name] for name in fields.keys() - {"vocab_size", "length"}} == {
        name: fields[name] for name in fields.keys() - {"vocab_size", "length"}}


def test_settings_that_make_no_sense(students):
    from tsdfm.pipeline.publishing.modeling_tsdfm import TsdfmConfig, TsdfmForMaskedLM

    fields = {**SHAPE, "vocab_size": 9, "length": 4, "cond_dim": 16}
    model = TsdfmForMaskedLM(TsdfmConfig(**fields, mask_id=8))
    for wrong in ({"steps": 0}, {"number": 0}, {"temperature": 0.0}, {"seed": -1}, {"prompt": [1] * 5}, {"prompt": [9]},
                  {"prompt": [[1]]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.generate(**wrong)
    x = torch.tensor([[8, 8, 8, 1]])
    torch.testing.assert_close(model(x).logits, model(x, t=torch.tensor([0.25])).logits)
    with pytest.raises(ValueError, match="padding"):
        model(x, attention_mask=torch.tensor([[1, 1, 1, 0]]))
    with pytest.raises(ValueError, match="give t"):
        TsdfmForMaskedLM(TsdfmConfig(**fields, source="uniform"))(x)


def test_the_file_names_no_module_of_the_package():
    import ast

    tree = ast.parse(bundled("tsdfm.pipeline.publishing.modeling_tsdfm"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in modules} == {
        "__future__", "collections", "dataclasses", "enum", "math", "torch", "transformers", "typing"}
