"""Numbers of things as people read them; nothing that is printed says '1 shards'."""

import re
from pathlib import Path

import pytest

from tsdfm.schemas.words import count

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("number", "noun", "said"), [
    (1, "step", "1 step"), (0, "step", "0 steps"), (1024, "step", "1,024 steps"), (2, "trajectory", "2 trajectories"),
    (1, "trajectory", "1 trajectory"), (2, "day", "2 days"), (2, "batch", "2 batches"), (2, "training seed", "2 training seeds"),
    (3, "box", "3 boxes"), (2, "GPU worker", "2 GPU workers"),
])
def test_a_number_of_things(number, noun, said):
    assert count(number, noun) == said


def test_shards_faults_and_trials_are_counted_in_words_everywhere():
    """A number in braces before a plural that can be one is written with `count`."""
    wrong = [f"{path.relative_to(ROOT)}: {found[0]}" for room in ("jobs", "pipeline") for path in (ROOT / room).rglob("*.py")
             for found in re.finditer(r"\{len\([^}]*\)\} (?:shard|fault|trial|file|text|update)s\b", path.read_text())
             if "none of the" not in path.read_text()[found.start() - 20: found.start()]]
    assert wrong == []
