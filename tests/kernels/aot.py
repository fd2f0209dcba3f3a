"""Compiles every kernel ahead of time, no GPU needed, and prints one JSON line each: registers, spills, shared memory.

`python tests/kernels/aot.py [philox|look|again ...]`; run by test_compiled.py, in a process without Triton's interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tsdfm.kernels import philox_triton, sample_rows_triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
COLUMNS = {"hidden_column": 1, "weight_column": 1, "bias_step": 1}
ALIGNED = ("depth", "hidden_row", "weight_row")  # multiples of 16, as those of a model are


def compiled(kernel, types, constants, warps, stages, capability):
    """One kernel for one chip; arguments that `types` and `constants` don't name are int32."""
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
                  if signature[name].startswith("*") or name in ALIGNED}
    binary = triton.compile(
        ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage, code = (subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout
                       for flag in ("--dump-resource-usage", "-sass"))
    figures = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    instructions = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("HGMMA", "HMMA", "STL", "LDL")}
    return {"shared": binary.metadata.shared, **figures, **instructions}


def products():
    """(name, kernel, types, constants, tile) of every entry of the table of tiles."""
    for dtype, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        pointers = dict.fromkeys(("hidden", "weight", "bias"), f"*{dtype}")
        for rows in (16, 64, 1024):
            tile = sample_rows_triton.tile(rows, itemsize)
            for argmax in (False, True):
                yield (f"look {dtype} {rows}{' argmax' if argmax else ''}", sample_rows_triton.look_kernel,
                       {**pointers, "maxima": "*fp32", "second": "*i32" if argmax else "*fp32", "temperature": "fp32"},
                       {**COLUMNS, "WIDEN": False, "ARGMAX": argmax, "HAS_BIAS": True, "BLOCK": 128, "ROWS": tile.rows,
                        "DEPTH": tile.depth}, tile)
        tile = sample_rows_triton.tile(sample_rows_triton.PAIRS, itemsize)
        yield (f"again {dtype}", sample_rows_triton.again_kernel,
               {**pointers, "blocks": "*i64", "order": "*i64", "out": "*fp32", "temperature": "fp32"},
               {**COLUMNS, "WIDEN": False, "HAS_BIAS": True, "BLOCK": 128, "PAIRS": sample_rows_triton.PAIRS,
                "DEPTH": tile.depth, "SPLIT": sample_rows_triton.SPLIT}, tile)


def philox():
    """(name, kernel, types, constants) of both outputs."""
    words = dict.fromkeys(("k0", "k1", "c0", "c1", "c2", "c3"), "*i64")
    for out, dtype in (("words", "*i64"), ("uniform", "*fp64")):
        yield (f"philox {out}", philox_triton.philox_kernel, {**words, "out": dtype, "count": "i64", "columns": "i64"},
               {"WORDS": out == "words", "ROUNDS": 10, "BLOCK": philox_triton.BLOCK})


def main(wanted):
    """Every kernel whose name starts with one of `wanted`, or all."""
    every = [(*kernel, tile.warps, tile.stages) for *kernel, tile in products()] + [(*kernel, 4, 3) for kernel in philox()]
    for name, kernel, types, constants, warps, stages in every:
        if not wanted or name.startswith(tuple(wanted)):
            for capability in (80, 90):
                figures = compiled(kernel, types, constants, warps, stages, capability)
                print(json.dumps({"kernel": name, "sm": capability, **figures}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
