"""`linear_logprob` and its gradient against plain torch: `python tests/benchmarks/logprob.py [--quick]`.

N rows, V = 50,257, D = 768 (--rows, --vocab, --depth), float32, from hidden states and the head's weight to the log-probability of a target per row. Sides
take turns in processes of their own (see measure.py); ratios are of wall clock and of CPU time, and memory is peak resident bytes above
rest. --threads T gives each side T threads, and --beside B starts B processes that compute all the time.

  plain     log_softmax(h @ W.T).gather, with torch's own product
  compiled  torch.compile of it, compiled before it is measured
  onednn    the same with the product of kernels/linear.py, as ours has it: what of the gain is the library's
  product   that product alone, a block at a time: the floor

With --gradient each side also computes d hidden and d weight of the sum. --device cuda times the Triton kernels, and beside them
liger-kernel's and cut-cross-entropy's where those are installed; the floor is then `matmul`, the whole product at once, time that of the
device, and memory the allocator's peak.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measure import MIB, Builder, Piece, Ratio, busy, interleave, machine, report, say, table
from torch import Tensor

from tsdfm.kernels.linear import linear
from tsdfm.kernels.linear_buckets import BLOCK_ELEMENTS, BLOCK_ROWS
from tsdfm.kernels.linear_logprob import linear_logprob

TARGET_TIME, TARGET_BESIDE = 0.80, 1.0  # at most this share of plain's time, alone and beside busy processes
TARGET_MEMORY = 50.0  # plain's memory in multiples of ours

Logprob = Callable[[Tensor, Tensor, Tensor], Tensor]


class Size(NamedTuple):
    """Of the problem."""

    rows: int
    vocab: int
    depth: int


class Load(NamedTuple):
    """Threads of a side, and busy processes beside it."""

    threads: int
    beside: int

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}, {self.beside or 'no'} busy process{'es' * (self.beside != 1)} beside"


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All of [N, V]."""
    return F.log_softmax(hidden @ weight.T, -1).gather(-1, target[:, None])[:, 0]


def onednn(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All of [N, V], by our product."""
    return F.log_softmax(linear(hidden, weight), -1).gather(-1, target[:, None])[:, 0]


def product(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The product alone, in our blocks; returns nothing of use."""
    return torch.tensor([float(linear(rows, part)[0, 0]) for rows in hidden.split(BLOCK_ROWS)
                         for part in weight.split(BLOCK_ELEMENTS // min(BLOCK_ROWS, len(hidden)))])


def ours(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The kernel that is measured."""
    return linear_logprob(hidden, weight, None, target)


def matmul(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The product alone, of all of [N, V] at once: the floor on a GPU."""
    return hidden @ weight.T


def others() -> dict[str, Logprob]:
    """Kernels of other libraries, on a GPU and where they are installed."""
    found: dict[str, Logprob] = {}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        found["liger"] = lambda h, w, t: -Liger.apply(h, w, t, None, None, -100, 0.0, 0.0, "none")[0]
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cce"] = lambda h, w, t: -linear_cross_entropy(h, w, t, reduction="none")
    return found


def side_named(name: str) -> Logprob:
    """The function of one side."""
    known: dict[str, Logprob] = {"ours": ours, "plain": plain, "onednn": onednn, "product": product, "matmul": matmul}
    return torch.compile(plain) if name == "compiled" else (known | others())[name]


def tensors(size: Size, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a weight whose logits have a spread of two nats, and targets."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(size.rows, size.depth, generator=g)
    weight = torch.randn(size.vocab, size.depth, generator=g) * 2 / size.depth**0.5
    return hidden.to(device, dtype), weight.to(device, dtype), torch.randint(size.vocab, (size.rows,), generator=g).to(device)


def run(function: Logprob, hidden: Tensor, weight: Tensor, target: Tensor, *, gradient: bool) -> None:
    """One call of a side."""
    if not gradient:
        with torch.no_grad():
            function(hidden, weight, target)
        return
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    torch.autograd.grad(function(*inputs, target).sum(), inputs)


def build(name: str, size: Size, gradient: bool) -> Piece:
    """One side on the CPU."""
    function, data = side_named(name), tensors(size, "cpu", torch.float32)
    if name == "compiled":
        run(function, *data, gradient=gradient)

    def piece() -> dict[str, float]:
        run(function, *data, gradient=gradient)
        return {"rows": size.rows}

    return piece


def on_cpu(names: list[str], size: Size, rounds: int, load: Load, gradient: bool) -> dict[str, dict[str, float]]:
    """Seconds of wall clock and CPU and peak bytes of every side, and ratios to ours."""
    sides: dict[str, tuple[Builder, Builder]] = {
        name: (partial(build, name, size, gradient), partial(build, name, Size(3, 300, size.depth), gradient)) for name in names}
    with busy(load.beside):
        samples = interleave(sides, rounds, load.threads)
    lines, result = [], {}
    for name in names:
        its, mine = samples[name], samples["ours"]
        wall = Ratio.of([s.seconds for s in mine], [s.seconds for s in its])
        cpu = Ratio.of([s.cpu_seconds for s in mine], [s.cpu_seconds for s in its])
        memory = Ratio.of([s.extra_bytes for s in its], [max(1, s.extra_bytes) for s in mine])
        seconds, peak = median(s.seconds for s in its), max(s.extra_bytes for s in its)
        lines.append((name, seconds, peak / MIB, wall, cpu, memory))
        result[name] = {"seconds": seconds, "peak_mib": peak / MIB, "ours_over_it": wall.median, "ours_over_it_cpu": cpu.median,
                        "memory_over_ours": memory.median}
    table(f"{load}, on {machine(load.threads)['processor']}",
          ("side", "seconds", "peak MiB", "ours / it, wall clock", "CPU time", "it / ours, memory"), lines)
    if not gradient:
        most = TARGET_BESIDE if load.beside else TARGET_TIME
        met = result["plain"]["ours_over_it"] <= most, result["plain"]["memory_over_ours"] >= TARGET_MEMORY
        say(f"targets against plain: at most {most:g} of its time {'met' if met[0] else 'missed'}, "
            f"a {TARGET_MEMORY:g}th of its memory {'met' if met[1] else 'missed'}")
    return result


def on_cuda(names: list[str], size: Size, rounds: int, gradient: bool) -> dict[str, dict[str, float]]:
    """Device milliseconds and the allocator's peak of every side, in bfloat16."""
    data, result, lines = tensors(size, "cuda", torch.bfloat16), {}, []
    for name in names:
        function, times = side_named(name), []
        for turn in range(rounds + 1):  # the first compiles
            torch.cuda.reset_peak_memory_stats()
            rest = torch.cuda.memory_allocated()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(function, *data, gradient=gradient)
            end.record()
            torch.cuda.synchronize()
            if turn:
                times.append(start.elapsed_time(end))
        result[name] = {"milliseconds": min(times), "peak_mib": (torch.cuda.max_memory_allocated() - rest) / MIB}
        lines.append((name, *result[name].values(), result["ours"]["milliseconds"] / min(times)))
    table("bfloat16 on the device", ("side", "ms", "peak MiB", "ours / it, time"), lines)
    return result


def main() -> None:
    """Measure, print a table for people and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    parser.add_argument("--rows", type=int, help="N (2,048; 128 with --quick)")
    parser.add_argument("--vocab", type=int, default=50_257)
    parser.add_argument("--depth", type=int, default=768)
    parser.add_argument("--rounds", type=int, help="rounds (3; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=1, help="of each side, on the CPU")
    parser.add_argument("--beside", type=int, default=0, help="busy processes to start beside, on the CPU (none)")
    parser.add_argument("--sides", nargs="+", help="of those named above, all by default; `ours` and `plain` always take part")
    parser.add_argument("--gradient", action="store_true", help="also the gradient in hidden and weight")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    size = Size(options.rows or (128 if options.quick else 2048), options.vocab, options.depth)
    rounds, names = options.rounds or (1 if options.quick else 3), ["ours", "plain", "compiled"]
    say(f"N {size.rows:,}, V {size.vocab:,}, D {size.depth}{', with gradient' if options.gradient else ''}")
    if options.device == "cuda":
        floor = [] if options.gradient else ["matmul"]
        result = on_cuda([*names, *floor, *others()], size, rounds, options.gradient)
    else:
        floor = [] if options.gradient else ["product"]
        chosen = [name for name in (*names, *floor, "onednn") if not options.sides or name in ("ours", "plain", *options.sides)]
        result = on_cpu(chosen, size, rounds, Load(options.threads, options.beside), options.gradient)
    report({"machine": machine(options.threads), "beside": options.beside, "size": size._asdict(), "gradient": options.gradient,
            "sides": result}, options.json)


if __name__ == "__main__":
    main()
