"""What a file of weights holds, by its header, and networks without weights: nothing is allocated for what is only claimed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.regular import check_regular

DRAWING = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, from its header alone. Raises InputError: no such file, or none."""
    with _header(file) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (it is no dict)


def stored_dtypes(file: Path) -> set[str]:
    """The types of the tensors of a safetensors file, as 'F16', from its header alone. Raises as `stored_shapes`."""
    with _header(file) as opened:
        return {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (it is no dict)


@contextmanager
def _header(file: Path) -> Iterator[Any]:
    try:
        check_regular(file)
        with safe_open(str(file), framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a safetensors file ({first_line(error)}); make or copy it anew") from None


@contextmanager
def undrawn() -> Iterator[None]:
    """Leave new weights undrawn, on the device 'meta', where drawing does nothing and imports a compiler, for seconds."""
    with _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function in DRAWING:
            return args[0] if args else named["tensor"]
        return function(*args, **named)
