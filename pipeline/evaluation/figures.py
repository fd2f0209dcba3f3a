"""Figures in words: how every table, page and card writes a number, so that one figure reads the same everywhere."""

import re
from collections.abc import Sequence
from pathlib import Path

from tsdfm.schemas.evaluate import Perplexity
from tsdfm.schemas.frontier import PerplexityRatio
from tsdfm.schemas.measures import Bound, Corrected
from tsdfm.schemas.words import count as count

_COMMIT = re.compile(r"@([0-9a-f]{7})[0-9a-f]{33}$")
NONE = "-"  # where there is no figure


def ppl(value: float) -> str:
    """A perplexity: '57.3', from a thousand on '1,762'."""
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def ppl_interval(found: Perplexity | Bound) -> str:
    """A perplexity with its 95 % interval: '57.3 (55.6-59.0)'."""
    return f"{ppl(found.perplexity)} ({ppl(found.low)}-{ppl(found.high)})"


def ratio(found: PerplexityRatio | None) -> str:
    """A perplexity over another with its 95 % interval: '0.93 (0.85-1.02)'."""
    return NONE if found is None else f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


def corrected(found: Corrected) -> str:
    """A distance of sets with its 95 % interval: '0.934 (0.912-0.951)'."""
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def maybe(value: float | None, form: str, none: str = NONE) -> str:
    """A number in a format of Python's, or `none`."""
    return none if value is None else format(value, form)


def plus_minus(value: float, error: float | None, decimals: int) -> str:
    """A number with its error: '3.836 ± 0.305'; without an error, the number alone."""
    return f"{value:.{decimals}f}" + ("" if error is None else f" ± {error:.{decimals}f}")


def share(value: float | None) -> str:
    """A share of one as a percentage: '12.5 %'."""
    return NONE if value is None else f"{100 * value:.1f} %"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names that fit a table: the last part of a path, where that is no other's; of a commit of the Hub, seven digits."""
    last = {name: _COMMIT.sub(r"@\1", Path(name).name or name) for name in names}
    short = list(last.values())
    return {name: last[name] if short.count(last[name]) == 1 else name for name in names}
