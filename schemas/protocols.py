"""Protocols: named defaults of `evaluate`, by which figures compare with those of papers."""

from typing import Any, Literal

Protocol = Literal["owt-1024"]
# What papers on language models of OpenWebText do (MDLM, SDTT, Duo). Real text is left out unless a corpus is named: theirs is
# no default of ours. Draws need no setting: every uniform number has 53 random bits, and is inverted in float64.
PROTOCOLS: dict[Protocol, dict[str, Any]] = {
    "owt-1024": {"length": 1024, "samples": 1024, "steps": (8, 16, 32, 64, 128, 256, 512, 1024), "temperature": 1.0,
                 "evaluator": ("hub:openai-community/gpt2-large",), "dtype": "float32"}}
