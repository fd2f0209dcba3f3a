"""The closed choices of the field, each spelled once: configs, records and flags all take them from here."""

from typing import Literal

Source = Literal["mask", "uniform"]  # what x_0 is: all [MASK], or independent uniform tokens
Arm = Literal["shaped", "blind"]  # whether a compass chose a trajectory's jumps
Arms = Literal["shaped", "blind", "both"]  # of a dataset; both: each trajectory twice, paired
Select = Literal["argmin", "resample"]  # how one candidate is chosen by the energies
Level = Literal["sequence", "token", "sequence_to_token"]  # what is chosen: all tokens that jump together, or each by itself
Form = Literal["plain", "residual"]  # of an energy; residual: less the proposal's own log-probability
Clocks = Literal["independent", "spaced", "even"]  # which positions ring together (pipeline/flow/rings/clocks.py)
Solver = Literal["euler", "rk4", "rk4_chained"]  # how the posterior of one step is computed
Layout = Literal["fs-dfm", "mdlm", "duo", "sdtt", "masked-lm"]  # of another project's checkpoint
Texts = Literal["packed", "padded"]  # of a model: stretches of documents one after another, or one document each
Until = Literal["end", "length"]  # where a text stops: at its end token, or at its last position
Objective = Literal["event", "candidates", "endpoint", "tilt", "forward_kl", "reverse_kl"]  # what a student is fitted to
Cleaning = Literal["none", "prose"]  # of a corpus's documents
CorpusPart = Literal["all", "first", "second"]  # of a corpus's training documents
CompassKind = Literal["nce", "ar", "contrast", "denoiser", "custom"]  # custom: a user's own, through the Python API
DeviceKind = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]  # of the weights of networks, and of what they compute, where nothing is learnt
