"""One self-contained web page that plays trajectories jump by jump.

`player.html` is the page, `player.css` its style, `player.js` its script. The data is one JSON object
in a script element that the browser does not run. Every `<` of it is written `\\u003c`, so that no text of
a dataset closes the element or opens another, and the page shows texts only as text nodes.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from tsdfm.pipeline.dataset.frames import Frame, Pieces, TokenChoice, frames
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.trajectory import Grid
from tsdfm.schemas.words import count

MAX_TRAJECTORIES = 8  # a page is for looking at a few
STYLE, SCRIPT, DATA = "__STYLE__", "__SCRIPT__", "__TRAJECTORIES__"  # what player.html leaves open
DECIMALS = 5  # of energies, whose resolution is 2^-12


def player_page(manifest: DatasetManifest, logs: Sequence[JumpLog], vocabulary: Vocabulary) -> str:
    """A page that plays the given trajectories.

    Args:
        manifest: of the dataset that the logs come from.
        logs: sound rows of at most MAX_TRAJECTORIES ids, in any arms.
        vocabulary: the dataset's.

    Returns:
        HTML that needs nothing but itself.

    Raises:
        ValueError: no logs, or more than MAX_TRAJECTORIES ids.
    """
    ids = {log.trajectory_id for log in logs}
    if not 1 <= len(ids) <= MAX_TRAJECTORIES:
        raise ValueError(f"a page plays 1 to {MAX_TRAJECTORIES} trajectories, not {len(ids)}")
    grid = manifest.identity.grid
    data = {
        "facts": _facts(manifest), "steps": grid.steps, "masks": grid.mask_id is not None,
        "logs": [_log_data(log, vocabulary, grid) for log in logs],
    }
    page = _asset("player.html").replace(STYLE, _asset("player.css"))
    page = page.replace(SCRIPT, _asset("player.js"))
    return page.replace(DATA, _script_safe(data))  # last: nothing in a dataset's text is ever replaced


def _asset(path: str) -> str:
    return files("tsdfm.pipeline.dataset").joinpath(path).read_text(encoding="utf-8")


def _script_safe(data: object) -> str:
    """JSON, in ASCII, that can stand in a script element: `<` would be the only way out of it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _facts(manifest: DatasetManifest) -> list[str]:
    """A line for people on how the dataset was made, in parts."""
    identity, shaping = manifest.identity, manifest.identity.shaping
    facts = [f"{identity.teacher.source} source", count(identity.rollout.length or 0, "token"),
             count(identity.rollout.steps, "step")]
    if identity.grid.fixed:
        facts.append("given tokens underlined")
    if identity.compass is not None and identity.arm != "blind":
        facts += [f"{identity.compass.kind} compass", count(shaping.candidates, "candidate"), shaping.select]
        if shaping.level != "sequence":
            facts.append("chosen by token" if shaping.level == "token" else f"chosen by token from t = {shaping.token_from:g}")
    return facts


def _log_data(log: JumpLog, vocabulary: Vocabulary, grid: Grid) -> dict[str, Any]:
    """One trajectory: its source, which positions of it were given, and per frame only what differs from the frame before.

    A piece is its text, or null where it is a mask.
    """
    mask_id = grid.mask_id
    tokens = log.source(mask_id).tolist()
    before = _maskable(Pieces(vocabulary).of(tokens), [token == mask_id for token in tokens])
    data: dict[str, Any] = {
        "id": log.trajectory_id, "arm": log.arm, "final": _rounded(log.final_energy), "source": before,
        "given": [] if log.fixed_positions is None else log.fixed_positions.tolist(), "frames": [],
    }
    for frame in frames(log, vocabulary, grid):
        after = _maskable(frame.pieces, frame.masked)
        data["frames"].append(_frame_data(frame, before, after))
        before = after
    return data


def _frame_data(frame: Frame, before: list[str | None], after: list[str | None]) -> dict[str, Any]:
    """`set`: the pieces that differ, [position, piece]; `candidates` only where they were scored; `choices` where each position
    chose by itself."""
    changes = [[position, piece] for position, piece in enumerate(after) if piece != before[position]]
    data: dict[str, Any] = {
        "step": frame.step, "t": round(frame.t, 6), "changed": frame.changed, "set": changes,
        "choice": frame.choice, "energies": None,
    }
    if frame.energies is not None:
        data |= {"energies": [_rounded(energy) for energy in frame.energies], "candidates": frame.candidates}
    if frame.choices is not None:
        data |= {"candidates": frame.candidates, "choices": [_choice_data(each) for each in frame.choices]}
    return data


def _choice_data(choice: TokenChoice) -> dict[str, Any]:
    return {"choice": choice.choice,
            "energies": None if choice.energies is None else [_rounded(energy) for energy in choice.energies]}


def _maskable(pieces: list[str], masked: list[bool]) -> list[str | None]:
    return [None if hidden else piece for piece, hidden in zip(pieces, masked, strict=True)]


def _rounded(energy: float | None) -> float | None:
    return None if energy is None else round(energy, DECIMALS)
