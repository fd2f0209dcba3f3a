"""What shaping costs, by level: `python tests/benchmarks/levels.py [--quick] [--threads 1] [--json FILE]`.

CPU time of `roll_out` with the embedded teacher and `ar` compass, K = 8 candidates, spaced clocks, temperature 0.8, in multiples of a
blind rollout of the same steps: whole candidates chosen (`sequence`), tokens chosen one by one in one sweep and in two (`token`), and
half of each (`sequence_to_token`). All sides compute the final energies, which a dataset of any arm has. Target: at most 3 by token.
"""

import argparse
import itertools
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from measure import Builder, Piece, Ratio, interleave, machine, report, say, table

from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.schemas.generate import GenerateConfig

TARGET = 3.0
BATCH = 32
LEVELS: dict[str, dict[str, object]] = {
    "blind": {}, "token": {"level": "token"}, "token, 2 sweeps": {"level": "token", "sweeps": 2},
    "sequence_to_token": {"level": "sequence_to_token"}, "sequence": {"level": "sequence"},
}


def build(steps: int, name: str) -> Piece:
    """Rollouts of one level; each run is of other trajectories."""
    config = GenerateConfig.model_validate({
        "rollout": {"steps": steps, "temperature": 0.8, "clocks": "spaced"}, "shaping": {"candidates": 8, **LEVELS[name]}})
    models, numbers = open_models(config, torch.device("cpu")), itertools.count()

    def piece() -> dict[str, float]:
        first = BATCH * next(numbers)
        roll_out(models.teacher.network, models.compass, config.rollout, config.shaping, range(first, first + BATCH),
                 "blind" if name == "blind" else "shaped")
        return {"tokens": float(BATCH * models.teacher.network.config.length)}

    return piece


def compare(steps: int, rounds: int, threads: int) -> dict[str, object]:
    """Every level in multiples of the blind rollout of as many steps."""
    say(f"{steps} steps ...")
    sides: dict[str, tuple[Builder, Builder]] = {
        name: (partial(build, steps, name), partial(build, 1, name)) for name in LEVELS}
    samples = interleave(sides, rounds, threads)
    result: dict[str, object] = {}
    rows = []
    for name, side in samples.items():
        cpu = Ratio.of([s.cpu_rate for s in samples["blind"]], [s.cpu_rate for s in side])
        seconds = sorted(s.cpu_seconds for s in side)[len(side) // 2] / BATCH
        result[name] = {"times_blind_cpu": asdict(cpu), "cpu_seconds_a_trajectory": seconds}
        rows.append((name, 1000 * seconds, cpu))
    table(f"N = {steps}, L = 64, K = 8, {BATCH} trajectories at once; target by token: at most {TARGET:g}",
          ("", "CPU ms a trajectory", "CPU / blind"), rows)
    return result


def main() -> None:
    """Measure; tables on standard error, one JSON object on standard output."""
    parser = argparse.ArgumentParser(description="What shaping costs, by level.")
    parser.add_argument("--quick", action="store_true", help="one round: not to be quoted")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON object to FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    found = {str(steps): compare(steps, 1 if options.quick else 3, options.threads) for steps in (8, 64)}
    report({"machine": machine(options.threads), "levels": found, "seconds": time.perf_counter() - started}, options.json)


if __name__ == "__main__":
    main()
