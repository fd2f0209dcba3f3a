"""Numbers of things in words, for everything that people read."""


def count(number: int, noun: str) -> str:
    """A number of things: '1 step', '1,024 steps', '2 trajectories', '3 batches'."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """A noun's plural, of its last word: 'training seeds', 'trajectories', 'batches'."""
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
