"""Discrete flow matching: the path, the noise, the compass, and the sampler that shapes."""
