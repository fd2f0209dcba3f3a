"""Counts, without a GPU, how often a rollout would wait for one.

A GPU works through a queue. Whatever needs a number from it (a size that depends on data, a truth value) or copies between the
two memories waits until that queue is empty, and the GPU then idles until the queue is filled again.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"cpu", "tolist", "numpy", "to", "tensor", "as_tensor"}  # copies between the memories, by the names of torch's functions
SIZES = {"nonzero", "masked_select", "_local_scalar_dense", "equal", "_unique2", "unique_dim", "unique_consecutive"}


class _Operators(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        sized = name == "repeat_interleave" and "output_size" in kwargs
        if (name in SIZES or (func._overloadname == "Tensor" and name == "repeat_interleave" and not sized)
                or any(index is not None and index.dtype == torch.bool for index in indices)):
            self.waits.note(name)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        moves = name != "to" or any(isinstance(each, str | torch.device) for each in [*args, *(kwargs or {}).values()])
        if name in READS and moves:
            self.waits.note(name)
        return func(*args, **(kwargs or {}))


class Waits:
    """Names of what waited, one list per step: a step begins when `next_step` is called; the first list is of what comes before."""

    def __init__(self):
        self.steps: list[list[str]] = [[]]
        self.paused = False

    def note(self, name):
        if not self.paused:
            self.steps[-1].append(name)

    def next_step(self):
        self.steps.append([])

    @contextmanager
    def counted(self):
        with _Functions(self), _Operators(self):
            yield self

    def uncounted(self, kernel):
        """A kernel as it is on a GPU, where it asks for nothing: its form for CPUs may."""
        def called(*args, **kwargs):
            before, self.paused = self.paused, True
            try:
                return kernel(*args, **kwargs)
            finally:
                self.paused = before
        return called
