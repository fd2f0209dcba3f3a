"""The paper's claim on real text: `make claims`, or `python tests/benchmarks/claims.py [--quick] [--set NAME=JSON] [--work DIR] [--write]`.

Does a student that writes in 8 steps, made from shaped trajectories, beat its own teacher in 1,024? Both sources, both kinds of
clocks, three training seeds, three judges of increasing size that had no part in making anything, real held-out text beside them;
and beside the shaped students: blind ones of as much work, blind ones of more trajectories and updates, blind ones of more
parameters, students of the predecessor's online scheme, and of rounds that halve the steps. Targets:

(i)   at temperature 1 the 8-step student is at least 32 % below its teacher at 1,024 steps under every judge, at an entropy of
      at least 97 % of real text's;
(ii)  at equal entropy, and at equal distinct-2, it is at least 10 % below the curve of its teacher at 1,024 steps (independent
      clocks), and below that teacher in the same 8 steps with the same clocks, under every judge and with every training
      seed; and its MAUVE is not worse than the former's;
(iii) 8 steps are at least 100 times faster than 1,024, by wall clock, every step computed.

A run that was killed goes on where it was. `--write` writes the section of the README beside this file, and figure, settings,
commands and all numbers into results/. The whole takes hours; `--quick` is small; `--set` changes one setting, and may be repeated.
"""

import argparse
import json
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import claims_table
import claims_verdicts
from claims_work import QUICK, Runner, Settings, Work
from measure import machine, report, say
from speed import speed_of_steps


def changed(settings: Settings, changes: list[str]) -> Settings:
    """Settings with some fields set, each 'NAME=JSON'. Raises SystemExit."""
    names = {each.name for each in fields(settings)}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in names:
            raise SystemExit(f"--set {change}: no such setting; there are {', '.join(sorted(names))}")
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            raise SystemExit(f"--set {change}: give NAME=JSON, for instance seeds=[0,1] or samples=64") from None
        settings = replace(settings, **{name: tuple(found) if isinstance(found, list) else found})
    return settings


def measured_speed(work: Work, source: str) -> dict[str, float]:
    """How much faster a student of a source is than its teacher; measured once, and then kept in the work folder."""
    file = work.folder / f"speed-{source}.json"
    if not file.exists():
        clocks = work.clocks(source)[0]
        student = work.folder / f"student-{source}-{clocks}-{work.students(clocks)[0]}-{work.settings.seeds[0]}"
        file.write_text(json.dumps(speed_of_steps(source, student)) + "\n")
    found: dict[str, float] = json.loads(file.read_text())
    return found


def main() -> None:
    """Make, distil, evaluate, conclude."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small numbers, two judges, one seed")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="change a setting")
    parser.add_argument("--work", type=Path, help="where everything is kept  [out/claims, or out/claims-quick]")
    parser.add_argument("--write", action="store_true", help="write the section of the README beside this file, and results/")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    settings = changed(QUICK if arguments.quick else Settings(), arguments.set)
    folder = arguments.work or Path("out/claims-quick" if arguments.quick else "out/claims")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    work = Work(Runner(folder), settings)
    work.make_data()
    work.make_models()
    results = work.evaluate()
    speeds = {source: measured_speed(work, source) for source in settings.sources}

    figures = claims_verdicts.collect(work.evaluations(), results)
    result = {"settings": asdict(settings), "machine": machine(1), "commands": work.runner.commands, "seconds": work.runner.seconds,
              "rows": figures, "learnt": work.learnt(), "speeds": speeds, "conclusion": claims_verdicts.conclude(figures, settings, speeds),
              "seconds_now": round(time.monotonic() - started)}
    text = claims_table.markdown(result)
    say(text)
    claims_table.draw(figures, folder / "claims.png")
    if arguments.write:
        claims_table.publish(text, folder / "claims.png", result)
    report(result, arguments.json or folder / "claims.json")


if __name__ == "__main__":
    main()
