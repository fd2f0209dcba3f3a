"""Model folders: round trip, fingerprint, and every kind of folder that must be refused in one line."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE, load, load_denoiser, save
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.schemas.base import Frozen, InputError, WorkError
from tsdfm.schemas.publish import RECEIPT_FILE


class Note(Frozen):
    """Stands for a training record."""

    a: int


@pytest.fixture
def folder(tmp_path, tiny_models):
    """A model folder of one's own to damage."""
    shutil.copytree(tiny_models.mask, tmp_path / "model")
    return tmp_path / "model"


def refused(path, opener=load):
    with pytest.raises(InputError) as caught:
        opener(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def edit(path, **changes):
    """Change fields of a JSON file; None removes one."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


@pytest.mark.parametrize(("name", "kind"), [("mask", Denoiser), ("uniform", Denoiser), ("ar", CausalLM), ("nce", NceEncoder),
                                            ("contrast", ContrastLM)])
def test_round_trip(tmp_path, tiny_models, name, kind):
    opened = load(getattr(tiny_models, name))
    assert type(opened.network) is kind
    assert not opened.network.training
    assert not any(p.requires_grad for p in opened.network.parameters())
    save(tmp_path / "copy", opened.network, opened.vocabulary, Note(a=1))
    copy = load(tmp_path / "copy")
    assert copy.network.config == opened.network.config
    assert copy.fingerprint == opened.fingerprint
    assert copy.path == tmp_path / "copy"
    assert copy.vocabulary.fingerprint == opened.vocabulary.fingerprint
    for (key, a), b in zip(opened.network.state_dict().items(), copy.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert sorted(os.listdir(tmp_path / "copy")) == sorted([CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, TRAINING_FILE])
    assert json.loads((tmp_path / "copy" / TRAINING_FILE).read_text()) == {"a": 1}


def test_half_weights(tmp_path, tiny_models):
    """Stored in float16, opened in float32, rounded once and never again; half the bytes."""
    opened = load(tiny_models.mask)
    save(tmp_path / "half", opened.network, opened.vocabulary, None, half=True)
    half = load(tmp_path / "half")
    for (key, a), b in zip(opened.network.state_dict().items(), half.network.state_dict().values(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a.half().float(), b), key
    assert half.fingerprint != opened.fingerprint
    assert (tmp_path / "half" / WEIGHTS_FILE).stat().st_size < 0.55 * (tiny_models.mask / WEIGHTS_FILE).stat().st_size
    save(tmp_path / "again", half.network, half.vocabulary, None, half=True)
    assert load(tmp_path / "again").fingerprint == half.fingerprint


def test_saving_does_not_change_the_network(tmp_path, tiny_models):
    opened = load(tiny_models.mask)
    before = {k: v.clone() for k, v in opened.network.state_dict().items()}
    save(tmp_path / "half", opened.network, opened.vocabulary, None, half=True)
    assert all(torch.equal(before[k], v) for k, v in opened.network.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_opened(folder, tmp_path, value):
    """Every number a model of NaNs gives is NaN, and nothing else says so."""
    opened = load(folder)
    name = next(iter(opened.network.state_dict()))
    opened.network.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(WorkError, match=f"{name} is not finite; nothing was saved$"):
        save(tmp_path / "copy", opened.network, opened.vocabulary, None)
    assert not (tmp_path / "copy").exists()
    save_file(opened.network.state_dict(), folder / WEIGHTS_FILE)
    assert name in refused(folder)


def test_half_weights_that_overflow_are_not_saved(folder, tmp_path):
    opened = load(folder)
    next(iter(opened.network.state_dict().values())).view(-1)[0] = 1e6
    with pytest.raises(WorkError, match="in float16; nothing was saved; leave out --half"):
        save(tmp_path / "half", opened.network, opened.vocabulary, None, half=True)
    save(tmp_path / "whole", opened.network, opened.vocabulary, None)
    assert load(tmp_path / "whole").path == tmp_path / "whole"


def test_a_link_is_refused_before_anything_is_made(folder, tmp_path):
    """Story: --out was a link to a bigger disk; the training ran for a day, and could not be put there."""
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(InputError, match="symbolic link"):
        checkpoint.check_target(link)


def test_a_mount_point_is_refused_before_anything_is_made(folder, monkeypatch):
    """What is there would be deleted, and nothing can be renamed to such a place."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    with pytest.raises(InputError, match="mount point"):
        checkpoint.check_target(folder)


# ------------------------------------------------------------------ fingerprint

@pytest.mark.parametrize("where", [0, 1, -1])
def test_the_fingerprint_sees_every_bit_of_the_weights(folder, where):
    """The lowest bit of the first, the second and the last float of the file."""
    before = load(folder).fingerprint
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 4 * where if where >= 0 else len(data) - 4] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(data)
    assert load(folder).fingerprint != before


def test_the_fingerprint_sees_config_and_tokenizer(folder):
    fingerprints = {load(folder).fingerprint}
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text() + " ")
    fingerprints.add(load(folder).fingerprint)
    edit(folder / CONFIG_FILE, kappa_exponent=2.0)
    fingerprints.add(load(folder).fingerprint)
    tokenizer = json.loads((folder / TOKENIZER_FILE).read_text())
    merges = tokenizer["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer))
    fingerprints.add(load(folder).fingerprint)
    assert len(fingerprints) == 4


def test_the_fingerprint_is_of_what_matters_only(folder, tmp_path):
    """How it was trained, and where it lies, do not change what a model is."""
    before = load(folder).fingerprint
    (folder / TRAINING_FILE).unlink()
    folder.rename(tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").fingerprint == before


# ------------------------------------------------------------------ refusals

@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    assert missing in refused(folder)


def test_no_folder_there(tmp_path, folder):
    refused(tmp_path / "nowhere")
    refused(folder / CONFIG_FILE)


@pytest.mark.parametrize(("changes", "named"), [
    ({"kind": None}, "kind"), ({"kind": "llama"}, "kind"), ({"n_heads": 3}, "n_heads"), ({"vocab_size": -1}, "vocab_size"),
    ({"hidden_size": "wide"}, "hidden_size"), ({"surprise": 1}, "surprise"), ({"source": "uniform"}, "source"),
    ({"mask_id": None}, "mask_id"), ({"mask_id": 10**6}, "mask_id"), ({"length": 0}, "length"),
    ({"kappa_exponent": 0}, "kappa_exponent"),
])
def test_a_wrong_config_names_its_field(folder, changes, named):
    edit(folder / CONFIG_FILE, **changes)
    message = refused(folder)
    assert CONFIG_FILE in message
    assert named in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model_type": "gpt2"}'])
def test_a_config_that_is_none(folder, content):
    (folder / CONFIG_FILE).write_bytes(content)
    assert CONFIG_FILE in refused(folder)


@pytest.mark.parametrize(
    "change", [{"n_blocks": 3}, {"n_blocks": 1}, {"hidden_size": 64}, {"cond_dim": 8}, {"mlp_ratio": 2}], ids=str)
def test_weights_of_another_shape_are_refused(folder, change):
    edit(folder / CONFIG_FILE, **change)
    message = refused(folder)
    assert WEIGHTS_FILE in message
    assert "tensor" in message


HUGE = {"hidden_size": 16384, "n_blocks": 256}


@pytest.mark.parametrize("change", [HUGE, HUGE | {"mlp_ratio": 16}, {"n_blocks": 3}, {"cond_dim": 65536}])
def test_a_config_of_a_larger_model_is_refused_by_the_weights_header(folder, change, monkeypatch):
    def never(*arguments):
        raise AssertionError("the weights were read")

    edit(folder / CONFIG_FILE, **change)
    monkeypatch.setattr(checkpoint, "load_safetensors", never)
    with pytest.raises(InputError, match=r"tensor .* the config wants .* don't belong together"):
        load(folder)


@pytest.mark.parametrize("change", [{"cond_dim": 10**18}, {"length": 10**9}])
def test_sizes_that_no_model_has_are_refused_by_the_config(folder, change):
    edit(folder / CONFIG_FILE, **change)
    with pytest.raises(InputError, match=f"{next(iter(change))}: Input should be less than or equal to 65536"):
        load(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "transposed", "renamed"])
def test_wrong_tensors_are_named(folder, change):
    weights = load_file(folder / WEIGHTS_FILE)
    name = "trunk.blocks.0.mlp.0.weight"
    if change == "extra":
        weights[name := "surprise"] = torch.zeros(2)
    elif change == "transposed":
        weights[name] = weights[name].T.contiguous()
    else:
        tensor = weights.pop(name)
        if change == "renamed":
            weights["trunk.blocks.0.mlp.0.weights"] = tensor
    save_file(weights, folder / WEIGHTS_FILE)
    assert name in refused(folder)


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", ["torch.save", "pickle", "zip only", "text", "empty", "truncated", "long header"])
def test_what_is_not_safetensors_is_refused_and_never_unpickled(folder, tmp_path, writer):
    path, trap = folder / WEIGHTS_FILE, tmp_path / "unpickled"
    data = path.read_bytes()
    if writer in ("torch.save", "zip only"):
        torch.save({"head.weight": torch.zeros(2), "bomb": Bomb(str(trap))}, path)
    else:
        path.write_bytes({
            "pickle": pickle.dumps(Bomb(str(trap))), "text": b"weights", "empty": b"", "truncated": data[: len(data) // 2],
            "long header": (2**40).to_bytes(8, "little") + data[8:],
        }[writer])
    assert WEIGHTS_FILE in refused(folder)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_folder_of_pickles_is_no_model(folder, tmp_path, name):
    (folder / WEIGHTS_FILE).unlink()
    torch.save({"bomb": Bomb(str(tmp_path / "unpickled"))}, folder / name)
    assert WEIGHTS_FILE in refused(folder)
    assert not (tmp_path / "unpickled").exists()


def test_a_foreign_tokenizer_is_refused(folder, tiny_models):
    """Of 310 ids where the model has 300: neither size nor [MASK] fit."""
    shutil.copy(tiny_models.foreign / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    assert "tokenizer" in refused(folder)


def test_a_mask_id_that_is_not_the_tokenizers_is_refused(folder):
    """Otherwise [MASK] is drawn as a token, and a real token marks what is masked."""
    edit(folder / CONFIG_FILE, mask_id=5)
    assert "mask_id" in refused(folder)


def test_a_model_without_masks_has_no_row_for_them(tmp_path, tiny_models):
    """A uniform teacher of the tokenizer's full size would draw [MASK] as source and as token."""
    opened = load_denoiser(tiny_models.mask)
    config = opened.network.config.model_copy(update={"source": "uniform", "mask_id": None})
    save(tmp_path / "model", Denoiser(config), opened.vocabulary, None)
    refused(tmp_path / "model")


def test_a_teacher_is_a_denoiser(tiny_models):
    opened = load_denoiser(tiny_models.mask)
    network = opened.network
    assert network is opened.network
    assert "causal" in refused(tiny_models.ar, load_denoiser)
    assert "nce" in refused(tiny_models.nce, load_denoiser)


# ------------------------------------------------------------------ writing

def test_a_model_folder_is_replaced_and_anything_else_is_not(tmp_path, tiny_models):
    opened, other = load(tiny_models.mask), load(tiny_models.uniform)
    save(tmp_path / "model", opened.network, opened.vocabulary, None)
    save(tmp_path / "model", other.network, other.vocabulary, None)
    assert load(tmp_path / "model").fingerprint == other.fingerprint
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a model folder"):
        save(tmp_path / "thesis", opened.network, opened.vocabulary, None)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError):
        save(tmp_path / "file", opened.network, opened.vocabulary, None)


@pytest.mark.parametrize(("name", "text", "words"), [
    ("config.json", '{"model_type": "gpt2"}', "not a model folder"),
    ("config.json", '{"port": 8080}', "not a model folder"),
    ("config.json", "[", "not a model folder"),
    ("notes.txt", "years of work", r"more than a model \(notes.txt\), which would be lost"),
    ("inner/model.safetensors", "another model", r"more than a model \(inner\)"),
])
def test_what_a_model_of_this_project_does_not_hold_is_never_lost(tmp_path, tiny_models, name, text, words):
    """Story: `fit-compass --out gpt2` took the place of a downloaded GPT-2, and `pretrain --out T` of notes kept beside T's weights."""
    opened = load(tiny_models.mask)
    save(tmp_path / "model", opened.network, opened.vocabulary, None)
    (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "model" / name).write_text(text)
    for refuse in (checkpoint.check_target, lambda out: save(out, opened.network, opened.vocabulary, None)):
        with pytest.raises(InputError, match=words):
            refuse(tmp_path / "model")
    assert (tmp_path / "model" / name).read_text() == text
    assert os.listdir(tmp_path) == ["model"]


def test_a_published_student_is_replaced_with_its_receipt(tmp_path, tiny_models):
    opened, other = load(tiny_models.mask), load(tiny_models.uniform)
    save(tmp_path / "model", opened.network, opened.vocabulary, None, card="a student")
    (tmp_path / "model" / RECEIPT_FILE).write_text("{}")
    save(tmp_path / "model", other.network, other.vocabulary, None)
    assert load(tmp_path / "model").fingerprint == other.fingerprint


def test_a_save_that_fails_leaves_the_old_folder_and_no_litter(tmp_path, tiny_models, monkeypatch):
    opened = load(tiny_models.mask)
    save(tmp_path / "model", opened.network, opened.vocabulary, None)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_safetensors", full_disk)
    with pytest.raises(WorkError, match="full"):
        save(tmp_path / "model", opened.network, opened.vocabulary, Note(a=1))
    assert os.listdir(tmp_path) == ["model"]
    assert load(tmp_path / "model").fingerprint == opened.fingerprint


def test_parents_are_made(tmp_path, tiny_models):
    opened = load(tiny_models.mask)
    save(tmp_path / "a" / "b" / "model", opened.network, opened.vocabulary, None)
    assert load(tmp_path / "a" / "b" / "model").fingerprint == opened.fingerprint
