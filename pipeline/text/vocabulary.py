"""The vocabulary: any tokenizer of the `tokenizers` library, [MASK] its last id; what is trained here is a byte-level BPE.

[MASK] has the highest id, so a model of the uniform source (or a causal LM) uses the same ids with one row fewer; a tokenizer
without it (GPT-2's, say) gets it appended. The end of a text is the token that the tokenizer's own post-processor puts there,
else the one of the usual name. Text is always encoded with special tokens treated as plain text: a literal "[MASK]" in a corpus
must never become the mask id. (A Unigram model that holds its end-of-text token as a piece does find a literal one.)
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tsdfm.pipeline.text.tokenizer_file import open_tokenizer
from tsdfm.schemas.base import InputError

EOS, MASK = "[EOS]", "[MASK]"
USUAL_EOS = (EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
FILE = "tokenizer.json"


def end_of_text(tokenizer: Tokenizer) -> str | None:
    """The token that ends a text: what the post-processor appends, else the first of the usual names; None: neither."""
    probe = tokenizer.encode("a")
    marks = probe.special_tokens_mask  # 1 where the post-processor added a token
    if 0 in marks and marks[-1]:
        return str(probe.tokens[-1])
    return next((name for name in USUAL_EOS if tokenizer.token_to_id(name) is not None), None)


class Vocabulary:
    """A tokenizer with the two ids the project needs. `size` counts [MASK]."""

    def __init__(self, tokenizer: Tokenizer, where: str) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        end = end_of_text(tokenizer)
        if tokenizer.token_to_id(MASK) is None:
            tokenizer.add_special_tokens([MASK])
        mask, size = tokenizer.token_to_id(MASK), tokenizer.get_vocab_size()
        if end is None or mask != size - 1:
            raise InputError(f"{where}: the tokenizer must hold a token that ends a text ({', '.join(USUAL_EOS)}, or what its "
                             f"post-processor appends), and {MASK} as its last id or not at all; add them")
        # An added token that is not special is matched in plain text, whatever `encode_special_tokens` says.
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        if not {end, MASK} <= special:
            raise InputError(f"{where}: {end} and {MASK} must be special tokens; add them with add_special_tokens")
        tokenizer.encode_special_tokens = True
        eos = int(tokenizer.get_vocab()[end])
        self.tokenizer, self.size, self.eos_id, self.mask_id = tokenizer, size, eos, mask

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Open a tokenizer.json, or the folder that holds one. Raises InputError."""
        file = path / FILE if path.is_dir() else path
        try:
            return cls(open_tokenizer(file), str(file))
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

    def ending_with(self, name: str, where: str) -> "Vocabulary":
        """This vocabulary, but with texts that end with the token `name`. Raises InputError if it has no such token.

        The choice is kept in tokenizer.json, as a post-processor that appends the token; ids and encoding are untouched.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        number = tokenizer.token_to_id(name)
        if number is None:
            raise InputError(f"--eos {name}: {where} has no such token; give one that it has")
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {name}", special_tokens=[(name, number)])
        return Vocabulary(tokenizer, where)

    def to_json(self) -> str:
        """The tokenizer.json, canonical: what the fingerprint is taken of."""
        return str(self.tokenizer.to_str(pretty=True))

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical tokenizer.json, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def decode(self, tokens: Sequence[int] | npt.NDArray[np.int32]) -> str:
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
