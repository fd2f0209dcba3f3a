"""The science: paths, models, compass, rollouts, jump logs and shards. Knows nothing of Ray."""
