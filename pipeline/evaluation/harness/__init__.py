"""A model as the lm-evaluation-harness asks it: likelihoods of continuations, and continuations. Start at `prompted.py`."""
