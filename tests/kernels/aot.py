"""Compiles every kernel ahead of time, no GPU needed, and prints a table: registers, spills, shared memory, tensor-core products.

`python tests/kernels/aot.py [--json] [philox|block_stats|gather_blocks|buckets|gradient ...]`; run by test_compiled.py, in a process without Triton's
interpreter. All of them take minutes, so their figures are kept in compiled.json, with a digest of the sources that they are of: `--record` makes
it anew, and `--sources` prints the digest.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tsdfm.kernels import linear_buckets_triton, philox_triton, sample_rows_triton
from tsdfm.kernels import tile_table as tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
COLUMNS = {"hidden_column": 1, "weight_column": 1, "bias_step": 1}
BUCKETS = {
    **dict.fromkeys(("picked", "ids", "counts"), "*i64"), "finished": "*i32",
    **dict.fromkeys(("chosen", "parts_max", "parts_sum", "weights", "nll"), "*fp32"), "rest": "*fp64",
}
GRADIENT = {"places": "*i64", **dict.fromkeys(("top", "grad_chosen", "grad_rest"), "*fp32")}
CAPABILITIES = (80, 90)
RECORD = Path(__file__).with_name("compiled.json")
KERNELS = Path(__file__).parents[2] / "kernels"
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
    figures = {name: int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK", "LOCAL")}
    instructions = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("HGMMA", "HMMA", "STL", "LDL")}
    return {"shared": binary.metadata.shared, **figures, **instructions}


def taken(capability, itemsize):
    """The tiles that problems of any width and number of rows get on one chip."""
    ends = {entry.rows for entry in tiles.TABLE}, {entry.width for entry in tiles.TABLE}
    return list(dict.fromkeys(tiles.lookup(capability, itemsize, width, rows) for rows in ends[0] for width in ends[1]))


def products():
    """(capability, name, kernel, types, constants, tile) of every kernel with a product, for every entry of the table."""
    for capability in CAPABILITIES:
        for dtype, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
            pointers = dict.fromkeys(("hidden", "weight", "bias"), f"*{dtype}")
            common = {"WIDEN": False, "HAS_BIAS": True}
            for tile in taken(capability, itemsize):
                shape = {**common, "ROWS": tile.rows, "DEPTH": tile.depth}
                where = f"{dtype} {tile.rows}x{tile.depth}x{tile.warps}x{tile.stages}"
                for argmax in (False, True):
                    yield (capability, f"block_stats {where}{' argmax' if argmax else ''}", sample_rows_triton.block_stats_kernel,
                           {**pointers, "maxima": "*fp32", "second": "*i32" if argmax else "*fp32", "temperature": "fp32"},
                           {**COLUMNS, **shape, "ARGMAX": argmax, "BLOCK": tiles.TOKENS}, tile)
                if tile.rows == sample_rows_triton.PAIRS:
                    yield (capability, f"gather_blocks {where}", sample_rows_triton.gather_blocks_kernel,
                           {**pointers, "blocks": "*i64", "order": "*i64", "out": "*fp32", "temperature": "fp32"},
                           {**COLUMNS, **common, "BLOCK": tiles.TOKENS, "PAIRS": tile.rows, "DEPTH": tile.depth,
                            "SPLIT": sample_rows_triton.SPLIT}, tile)
                for chosen, nll, splits in ((1, False, 1), (1, True, 4), (16, False, 4)):
                    name = f"buckets {where} k={chosen} splits={splits}{' nll' if nll else ''}"
                    yield (capability, name, linear_buckets_triton.buckets_kernel, {**pointers, **BUCKETS},
                           {**COLUMNS, **shape, "CHOSEN": chosen, "NLL": nll, "TOKENS": tiles.TOKENS, "SPLITS": splits,
                            "JOINED": linear_buckets_triton.JOINED}, tile)
                for chosen in (1, 16):
                    yield (capability, f"gradient {where} k={chosen}", linear_buckets_triton.gradient_kernel,
                           {**pointers, **GRADIENT, "out": f"*{dtype}"},
                           {**COLUMNS, **shape, "CHOSEN": chosen, "TOKENS": tiles.TOKENS}, tile)


def philox():
    """(name, kernel, types, constants) of both outputs."""
    words = dict.fromkeys(("k0", "k1", "c0", "c1", "c2", "c3"), "*i64")
    for out, dtype in (("words", "*i64"), ("uniform", "*fp64")):
        yield (f"philox {out}", philox_triton.philox_kernel, {**words, "out": dtype, "count": "i64", "columns": "i64"},
               {"WORDS": out == "words", "ROUNDS": 10, "BLOCK": philox_triton.BLOCK})


def figures(wanted):
    """One dict for each kernel whose name starts with one of `wanted`, or for all."""
    every = [(*kernel, tile.warps, tile.stages) for *kernel, tile in products()]
    every += [(capability, *kernel, 4, 3) for kernel in philox() for capability in CAPABILITIES]
    for capability, name, kernel, types, constants, warps, stages in every:
        if not wanted or name.startswith(tuple(wanted)):
            yield {"kernel": name, "sm": capability, **compiled(kernel, types, constants, warps, stages, capability)}


def sources():
    """A digest of all that is compiled: the kernels, their tiles and blocks."""
    files = [*sorted(KERNELS.glob("*_triton.py")), KERNELS / "tile_table.py", KERNELS / "row_blocks.py"]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def record():
    """Compile everything and keep the figures."""
    lines = ",\n  ".join(json.dumps(line) for line in figures(()))
    RECORD.write_text(f'{{"triton": "{triton.__version__}", "sources": "{sources()}", "kernels": [\n  {lines}\n]}}\n')


def main():
    """Print the figures, or record them."""
    if "--record" in sys.argv:
        record()
        return
    if "--sources" in sys.argv:
        print(sources())
        return
    as_json, wanted = "--json" in sys.argv, [word for word in sys.argv[1:] if word != "--json"]
    if not as_json:
        print(f"{'kernel':44}  sm  registers  shared  spilled bytes  HGMMA  HMMA")
    for line in figures(wanted):
        print(json.dumps(line) if as_json else (
            f"{line['kernel']:44}  {line['sm']}  {line['REG']:9}  {line['shared']:6}  {line['STACK'] + line['LOCAL']:13}"
            f"  {line['HGMMA']:5}  {line['HMMA']:4}"), flush=True)


if __name__ == "__main__":
    main()
