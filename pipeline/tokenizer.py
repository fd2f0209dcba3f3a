"""The vocabulary: a byte-level BPE of the `tokenizers` library, with [EOS] first and [MASK] last.

[MASK] has the highest id, so a model of the uniform source (or a causal LM) uses the same ids with one row fewer. Text is
always encoded with special tokens treated as plain text: a literal "[MASK]" in a corpus must never become the mask id.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tsdfm.schemas.base import InputError

EOS, MASK = "[EOS]", "[MASK]"
FILE = "tokenizer.json"


class Vocabulary:
    """A tokenizer with the two ids the project needs. `size` counts [MASK]."""

    def __init__(self, tokenizer: Tokenizer, where: str) -> None:
        eos, mask = tokenizer.token_to_id(EOS), tokenizer.token_to_id(MASK)
        size = tokenizer.get_vocab_size()
        if eos is None or mask != size - 1:
            raise InputError(f"{where}: the tokenizer must hold {EOS}, and {MASK} as its last id; add them")
        # An added token that is not special is matched in plain text, whatever `encode_special_tokens` says.
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        if not {EOS, MASK} <= special:
            raise InputError(f"{where}: {EOS} and {MASK} must be special tokens; add them with add_special_tokens")
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.size, self.eos_id, self.mask_id = tokenizer, size, int(eos), int(mask)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Open a tokenizer.json, or the folder that holds one. Raises InputError."""
        file = path / FILE if path.is_dir() else path
        try:
            return cls(Tokenizer.from_str(file.read_text(encoding="utf-8")), str(file))
        except InputError:
            raise
        except OSError:
            raise InputError(f"{file}: no such tokenizer; give a tokenizer.json or a folder with one") from None
        except Exception as error:  # the library raises bare Exception on bad JSON
            raise InputError(f"{file}: not a tokenizer of the tokenizers library ({error}); make it anew") from None

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Train a BPE of `size` ids, the two special tokens included, on `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - 1, special_tokens=[EOS], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens([MASK])
        return cls(tokenizer, "trained tokenizer")

    def to_json(self) -> str:
        """The tokenizer.json, canonical: what the fingerprint is taken of."""
        return str(self.tokenizer.to_str(pretty=True))

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical tokenizer.json, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def decode(self, tokens: Sequence[int]) -> str:
        """Text for people: [EOS] as a line break, [MASK] as a low line."""
        pieces: list[str] = []
        run: list[int] = []
        for token in tokens:
            if token in (self.eos_id, self.mask_id):
                pieces += [self.tokenizer.decode(run), "\n" if token == self.eos_id else "_"]
                run = []
            else:
                run.append(int(token))
        return "".join([*pieces, self.tokenizer.decode(run)])

    def stream(self, documents: Sequence[str]) -> npt.NDArray[np.int32]:
        """One int32 array: every document followed by [EOS]."""
        encodings = self.tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
        parts = [np.append(np.asarray(e.ids, dtype=np.int32), np.int32(self.eos_id)) for e in encodings]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)
