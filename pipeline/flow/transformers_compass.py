"""Any causal LM folder in the transformers format, as an `ar` compass over the teacher's vocabulary."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprobs
from tsdfm.pipeline.flow.compass import TokenSets, complete, first_of_equals, scored_length
from tsdfm.pipeline.models.computing import at_once
from tsdfm.pipeline.models.transformers import CausalModel, open_causal
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.text.same_tokenizer import difference
from tsdfm.pipeline.text.tokenizer_file import open_tokenizer
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError


class TransformersCompass:
    """E = mean negative log-likelihood of the completed candidate under a transformers causal LM."""

    needs_completion = True
    proposal_weight = 1.0

    def __init__(self, opened: CausalModel, bos_id: int, fingerprint: str, end_id: int | None) -> None:
        self.opened, self.bos_id, self.fingerprint, self.end_id = opened, bos_id, fingerprint, end_id

    @classmethod
    def open(
        cls, folder: Path, vocabulary: Vocabulary, length: int, device: torch.device, end_id: int | None = None
    ) -> "TransformersCompass":
        """Load from safetensors only; `end_id`: of a teacher of padded texts.

        Raises InputError unless it is a causal LM of that vocabulary, for `length` tokens.
        """
        what = f"compass {folder}"
        try:
            other = difference(vocabulary.tokenizer, open_tokenizer(folder / TOKENIZER_FILE))
        except OSError:
            raise InputError(f"{what}: no {TOKENIZER_FILE} there; put the teacher's beside the model") from None
        if other is not None:
            raise InputError(f"{what}: its tokenizer is not the teacher's ({other}); use a causal LM of the same vocabulary")
        opened = open_causal(what, folder, device)
        positions = opened.positions
        if positions is not None and positions < length:
            raise InputError(f"{what}: has {positions} positions, the texts have {length} tokens; give another compass, or "
                             "a shorter --length")
        bos_id = next(iter(opened.special_ids("bos_token_id")), vocabulary.eos_id)
        opened.check_ids([bos_id, *(number for number in vocabulary.tokenizer.get_vocab().values()
                                    if number != vocabulary.mask_id)])
        opened.check_positions(length)
        digests = [sha256_file(f) for f in sorted([*folder.glob("*.safetensors"), folder / "config.json"])]
        fingerprint = hashlib.sha256("".join([*digests, vocabulary.fingerprint]).encode()).hexdigest()
        return cls(opened, bos_id, fingerprint, end_id)

    def energy(self, states: Tensor, t: Tensor, completion: Tensor | None) -> Tensor:
        """See `Compass.energy`."""
        texts = complete(states, completion)
        batch, candidates, length = texts.shape
        first, size = first_of_equals(texts), scored_length(texts, self.end_id)
        counted = torch.arange(length, device=texts.device) < size[:, None]
        row, which = torch.nonzero(first == torch.arange(candidates, device=texts.device), as_tuple=True)
        total = torch.zeros(batch, candidates, dtype=torch.float64, device=texts.device)
        step = max(1, at_once(texts.device).compass_tokens // length)
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            tokens = texts[row[part], which[part]]
            inputs = F.pad(tokens[:, :-1], (1, 0), value=self.bos_id)
            hidden = self.opened.hidden(inputs)
            nll = -linear_logprob(hidden.flatten(0, 1), self.opened.weight, self.opened.bias, tokens.flatten())
            total[row[part], which[part]] = (nll.view(tokens.shape).double() * counted[row[part]]).sum(-1)
        return (total.gather(1, first) / size[:, None]).float()

    def token_energy(self, states: Tensor, t: Tensor, completion: Tensor | None, sets: TokenSets) -> Tensor:
        """-log p(token | the completed text before it); see `TokenCompass.token_energy`."""
        texts = complete(states[:, None], completion)[:, 0]
        batch, length = texts.shape
        step = max(1, at_once(texts.device).compass_tokens // length)
        inputs = F.pad(texts[:, :-1], (1, 0), value=self.bos_id)
        hidden = torch.cat([self.opened.hidden(inputs[start : start + step]) for start in range(0, batch, step)])
        return -linear_logprobs(hidden[sets.owner, sets.positions], self.opened.weight, self.opened.bias, sets.tokens)
