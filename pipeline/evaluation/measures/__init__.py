"""What stands beside the models in an evaluation: real text, naive samplers, distances, and bounds of likelihoods."""
