"""Checkpoints of other projects: read without unpickling, recognised, and rebuilt as ours."""
