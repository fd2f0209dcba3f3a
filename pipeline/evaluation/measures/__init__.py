"""What stands beside the models in an evaluation: real text, naive samplers, and how much of a text the corpus holds."""
