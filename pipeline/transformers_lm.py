"""Any causal LM folder in the transformers format, as an `ar` compass over the teacher's vocabulary."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob
from tsdfm.pipeline.compass import complete, first_of_equals
from tsdfm.pipeline.files import sha256_file
from tsdfm.pipeline.tokenizer import Vocabulary
from tsdfm.schemas.base import InputError

TOKENS_PER_BATCH = 8192


def is_transformers_folder(config: Path) -> bool:
    """Whether a config.json is one of transformers (has `model_type`) rather than ours (has `kind`)."""
    try:
        data = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "model_type" in data and "kind" not in data


class TransformersCompass:
    """E = mean negative log-likelihood of the completed candidate under a transformers causal LM."""

    needs_completion = True
    proposal_weight = 1.0

    def __init__(self, model: Any, bos_id: int, fingerprint: str) -> None:
        self.model, self.bos_id, self.fingerprint = model, bos_id, fingerprint

    @classmethod
    def open(cls, folder: Path, vocabulary: Vocabulary, device: torch.device) -> "TransformersCompass":
        """Load from safetensors only. Raises InputError if it is not a causal LM of the same vocabulary."""
        try:
            from transformers import AutoModelForCausalLM
        except ImportError:
            raise InputError(f"compass {folder}: needs transformers; pip install 'tsdfm-pipeline[eval]'") from None
        if Vocabulary.load(folder).fingerprint != vocabulary.fingerprint:
            raise InputError(f"compass {folder}: its tokenizer is not the teacher's; use a causal LM of the same vocabulary")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"compass {folder}: transformers cannot open it ({reason})") from None
        digests = [sha256_file(f) for f in sorted([*folder.glob("*.safetensors"), folder / "config.json"])]
        bos = model.config.bos_token_id
        fingerprint = hashlib.sha256("".join([*digests, vocabulary.fingerprint]).encode()).hexdigest()
        return cls(model.eval().requires_grad_(False).to(device), vocabulary.eos_id if bos is None else int(bos), fingerprint)

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        texts = complete(states, completion)
        batch, candidates, length = texts.shape
        first = first_of_equals(texts)
        row, which = torch.nonzero(first == torch.arange(candidates, device=texts.device), as_tuple=True)
        total = torch.zeros(batch, candidates, dtype=torch.float64, device=texts.device)
        head = self.model.get_output_embeddings()
        step = max(1, TOKENS_PER_BATCH // length)
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            tokens = texts[row[part], which[part]]
            inputs = F.pad(tokens[:, :-1], (1, 0), value=self.bos_id)
            hidden = self.model.base_model(input_ids=inputs).last_hidden_state
            nll = -linear_logprob(hidden.flatten(0, 1), head.weight, tokens.flatten(), head.bias)
            total[row[part], which[part]] = nll.view(tokens.shape).double().sum(-1)
        return (total.gather(1, first) / length).float()
