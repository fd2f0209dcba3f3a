"""Whether two tokenizers do the same, up to [MASK]: then a language model of one reads the tokens of the other as they are.

What is compared is what they do, not how they are written down: a library that loads and saves a tokenizer may add a
post-processor that does nothing, say.
"""

import numpy as np
from tokenizers import Tokenizer

MASK = "[MASK]"
PROBES = (
    "The quick brown fox jumps over the lazy dog.", "  two  spaces, a\ttab\nand\r\n\nlines ", "",
    "UPPER lower Title x1y2 1234567 3.14", "don't, we'll; it's -- (so) \"it\" is!",
    "nai\u0308ve cafe\u0301, na\u00efve caf\u00e9, \ufb01ne, \u2167, \u00bd",
    "\U0001f98a \U0001f468\u200d\U0001f469 e\u200cx \u00a0\ufeff",
    "日本語とかな 中文、漢字 한국어", "Привет мир, שלום, مرحبا",
    "def f(x):\n    return {'a': [x ** 2]}  # <b>&amp;</b>", "https://a.b/c?d=e_f#g \\n /* */ ~`|^",
)
TEXTS, LENGTH = 64, 12  # random texts, and their tokens


def difference(model: Tokenizer, other: Tokenizer) -> str | None:
    """The first thing that a language model's tokenizer `other` does otherwise than that of `model`; None: nothing.

    Every id of `model`, that of [MASK] aside, must stand for the same token in `other`, which may have further added tokens
    (for padding, say); probe texts must have the same tokens, and random tokens the same text.
    """
    ours = {number: token for token, number in model.get_vocab().items() if token != MASK}
    theirs = {number: token for token, number in other.get_vocab().items() if token != MASK}
    for number, token in sorted(ours.items()):
        if theirs.get(number) != token:
            return f"id {number} is {theirs.get(number)!r:.40}, not {token!r:.40}"
    added = {number: token for tokenizer in (model, other) for number, token in tokenizer.get_added_tokens_decoder().items()}
    more = len(theirs.keys() - ours.keys() - added.keys())
    if more:
        return f"it has {more} tokens more"
    special = [str(token.content) for token in added.values() if str(token.content) != MASK]
    plain = sorted(ours.keys() - added.keys())
    rows = np.random.default_rng(0).choice(plain, (TEXTS, LENGTH)).tolist() if plain else []
    before = [(each, each.encode_special_tokens, each.padding, each.truncation) for each in (model, other)]
    for each in (model, other):
        each.encode_special_tokens = True  # as a text is read: a literal [EOS] is no end
        each.no_padding()
        each.no_truncation()
    try:
        return _in_use(model, other, [*PROBES, *(f"a{token} b {token}c" for token in special)], rows)
    finally:
        for each, plainly, padding, truncation in before:
            each.encode_special_tokens = plainly
            if padding is not None:
                each.enable_padding(**padding)
            if truncation is not None:
                each.enable_truncation(**truncation)


def _in_use(model: Tokenizer, other: Tokenizer, texts: list[str], rows: list[list[int]]) -> str | None:
    for row in rows:
        text = model.decode(row)
        if other.decode(row) != text:
            return f"the tokens of {text!r:.40} are another text"
        texts.append(text)
    for text in texts:
        if model.encode(text, add_special_tokens=False).ids != other.encode(text, add_special_tokens=False).ids:
            return f"{text!r:.40} has other tokens"
    return None
