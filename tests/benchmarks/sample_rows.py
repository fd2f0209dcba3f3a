"""`sample_rows` against plain torch: `python tests/benchmarks/sample_rows.py [--quick]`.

R rows, V = 50,257, D = 768, float32: K = 8 draws and the top 16 of each row, from hidden states and the head's weight. Sides take
turns in processes of their own (see measure.py); ratios are of CPU time, and memory is peak resident bytes above rest.

  plain    the product, softmax, K calls of multinomial, topk: all of [R, V]
  batched  the same with one call of multinomial for all K draws
  product  the product alone, in our blocks: the floor

All sides multiply by the same oneDNN product, so the ratios are not those of another library's.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import MIB, Builder, Piece, Ratio, interleave, machine, report, say, table

from tsdfm.kernels.linear import linear
from tsdfm.kernels.sample_rows import BLOCK_ELEMENTS, PRODUCT_TOKENS, sample_rows

DRAWS, TOP = 8, 16
TARGET_TIME, TARGET_MEMORY = 4.0, 50.0  # what `plain` should take at least, in multiples of ours


def build(name: str, rows: int, vocab: int, depth: int) -> Piece:
    """One side."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, depth, generator=g), torch.randn(vocab, depth, generator=g) * 2 / depth**0.5
    uniforms = torch.rand(rows, DRAWS, generator=g, dtype=torch.float64)

    def plain(*, batched: bool) -> None:
        p = linear(hidden, weight).softmax(-1)
        if batched:
            torch.multinomial(p, DRAWS, replacement=True)
        else:
            torch.cat([torch.multinomial(p, 1) for _ in range(DRAWS)], 1)
        p.topk(TOP, -1).values.log_()

    def product() -> None:
        for rows in hidden.split(BLOCK_ELEMENTS // vocab):
            for part in weight.split(PRODUCT_TOKENS):
                linear(rows, part)

    work: dict[str, Callable[[], object]] = {"ours": lambda: sample_rows(hidden, weight, None, uniforms, top_k=TOP), "plain": partial(plain, batched=False),
            "batched": partial(plain, batched=True), "product": product}

    def piece() -> dict[str, float]:
        with torch.no_grad():
            work[name]()
        return {"tokens": rows * DRAWS}

    return piece


def main() -> None:
    """Measure, print a table for people and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    parser.add_argument("--rows", type=int, help="R (2,048; 64 with --quick)")
    parser.add_argument("--rounds", type=int, help="rounds (3; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    rows = options.rows or (64 if options.quick else 2048)
    size = (rows, 50_257, 768)
    names = ("ours", "plain", "batched", "product")
    sides: dict[str, tuple[Builder, Builder]] = {
        name: (partial(build, name, *size), partial(build, name, 3, 300, 8)) for name in names}
    say(f"R {rows:,}, V {size[1]:,}, D {size[2]}, K {DRAWS}, k {TOP}, {options.threads} thread(s)")
    samples = interleave(sides, options.rounds or (1 if options.quick else 3), options.threads)
    ours = samples["ours"]
    lines, result = [], {}
    for name in names:
        mine = samples[name]
        time = Ratio.of([s.cpu_seconds for s in mine], [s.cpu_seconds for s in ours])
        memory = Ratio.of([s.extra_bytes for s in mine], [max(1, s.extra_bytes) for s in ours])
        milliseconds = min(s.cpu_seconds for s in mine) / rows * 1e3
        peak = max(s.extra_bytes for s in mine) / MIB
        lines.append((name, milliseconds, peak, time, memory))
        result[name] = {"cpu_ms_per_row": milliseconds, "peak_mib": peak, "time_ratio": time.median,
                        "memory_ratio": memory.median}
    table("CPU time and extra memory; ratios to ours", ("side", "ms/row", "peak MiB", "time", "memory"), lines)
    met = result["plain"]["time_ratio"] >= TARGET_TIME, result["plain"]["memory_ratio"] >= TARGET_MEMORY
    say(f"targets over plain: {TARGET_TIME:g}x time {'met' if met[0] else 'missed'}, "
        f"{TARGET_MEMORY:g}x memory {'met' if met[1] else 'missed'}")
    report({"machine": machine(options.threads), "size": dict(zip("RVD", size, strict=True)), "sides": result}, options.json)


if __name__ == "__main__":
    main()
