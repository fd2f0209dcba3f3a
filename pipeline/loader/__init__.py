"""Frozen shards to training batches: the batch of update s is a pure function of (config, seed, s)."""
