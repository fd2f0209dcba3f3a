"""A dataset of trajectories on disk: a row, a shard, the manifest that commits it; checked, summed up, shown."""
