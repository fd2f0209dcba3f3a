"""The one loop of updates: exact resume from its checkpoints, and the data-parallel processes that share it."""
