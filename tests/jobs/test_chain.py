"""Real models in, real models out: each foreign layout from import to a student that transformers loads by its name, without us."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.foreign import gpt2_like, masked_lm, random_weights
from tests.loopback_hub import environment
from tests.support import make_dataset, packages_without_ours
from tsdfm.pipeline.models.folder import load_denoiser
from tsdfm.pipeline.text.vocabulary import FILE

IDS = 256 + 30 + 1
LOAD = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("tsdfm") is None
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained("team/student", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("team/student", trust_remote_code=True)
prompt = tokenizer("abc", add_special_tokens=False).input_ids
print(json.dumps({"tokens": model.generate(steps=2, number=2).tolist(), "prompt": prompt, "prompted": model.generate(prompt, steps=8).tolist()}))
"""


def fs_dfm(folder):
    torch.save({"student_model": random_weights("fs-dfm", IDS, student=True), "teacher_model": random_weights("fs-dfm", IDS)}, folder / "checkpoint.pth")
    return []


def mdlm(folder):
    save_file(random_weights("mdlm", IDS + 1), folder / "model.safetensors")
    return ["--layout", "mdlm"]


def sdtt(folder):
    mdlm(folder)
    return ["--layout", "sdtt"]


def duo(folder):
    mdlm(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "duo", "n_heads": 2, "model_length": 24, "vocab_size": IDS + 1}))
    return []


def bert(folder):
    masked_lm(folder, "Bert")
    return []


def modern_bert(folder):
    masked_lm(folder, "ModernBert")
    return []


LAYOUTS = {"fs-dfm": fs_dfm, "mdlm": mdlm, "sdtt": sdtt, "duo": duo, "bert": bert, "modern-bert": modern_bert}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_whole_chain(tmp_path, cli, hub, tiny_models, layout):
    pytest.importorskip("transformers")
    source, teacher, data, student = (tmp_path / name for name in ("source", "teacher", "data", "student"))
    source.mkdir()
    (source / FILE).write_text(gpt2_like(30).to_str())
    flags = LAYOUTS[layout](source)

    def run(*arguments):
        done = cli(*arguments)
        assert done.code == 0, done.stderr
        return done.stdout

    run("import-teacher", source, *flags, "--length", 12, "--out", teacher)
    make_dataset(data, tiny_models, teacher=str(teacher), compass="denoiser", trajectories=8, rollout={"steps": 4})
    run("distill", "--data", data, "--out", student, "--updates", 2, "--batch-size", 4)
    run("evaluate", "--model", student, "--steps", 2, "-n", 2, "--no-reference", "--no-memorisation", "--out", tmp_path / "evaluation")
    run("publish", student, "--repo", "team/student", "--license", "apache-2.0", "--evaluation", tmp_path / "evaluation")
    said = json.loads(run("sample", "--model", "hub:team/student", "--steps", 2, "-n", 2, "--json"))["texts"]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run([sys.executable, "-I", "-S", "-c", LOAD, str(packages_without_ours(tmp_path / "elsewhere"))], cwd=tmp_path / "elsewhere",
                          capture_output=True, text=True, check=False, env=environment(hub, tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [load_denoiser(student).vocabulary.decode(row) for row in found["tokens"]] == said
    assert found["prompt"]
    assert all(row[: len(found["prompt"])] == found["prompt"] for row in found["prompted"])

    from huggingface_hub import ModelCard

    card = ModelCard(hub.repos["model", "team/student"].files["README.md"].decode())
    fills = load_denoiser(student).network.config.mask_id is not None
    assert (card.data["pipeline_tag"], card.data["library_name"]) == (("fill-mask", "transformers") if fills else ("text-generation", "tsdfm-pipeline"))
    assert {each.metric_type for each in card.data["eval_results"]} == {"perplexity", "entropy"}
