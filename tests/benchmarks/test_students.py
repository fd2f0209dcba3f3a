"""What the page says of students is what the script prints of the results that are kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RESULTS = HERE / "results"
GROUPS = "--group", "contrast=TC0,TC1,TC2", "--group", "blind=TB0,TB1"


def run(*arguments):
    return subprocess.run([sys.executable, HERE / "students.py", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("results", "more", "group", "shown"), [
    ("students-of-contrast", (), "contrast", ("0.94 (0.91-1.01)", "0.90 (0.88-0.93)")),
    ("students-of-contrast", (), "blind", ("0.99 (0.96-1.01)", "1.00 (0.97-1.01)")),
    ("students-of-contrast-smollm2", (), "contrast", ("0.97 (0.90-1.05)", "0.94 (0.89-0.98)")),
    ("students-of-contrast", ("--curve", RESULTS / "students-of-contrast-teacher.json"), "contrast", ("0.86 (0.84-0.89)", "1.00 (0.98-1.02)"))])
def test_the_page_has_what_the_script_prints(results, more, group, shown):
    done = run(RESULTS / f"{results}.json", *GROUPS, *more)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith(group)]
    page = (HERE / "README.md").read_text()
    for figure in shown:
        assert figure in line
        assert figure in page
    [by_group] = json.loads(done.stdout)["judges"].values()
    assert f"{by_group[group]['distinct_2']['mean']:.2f}" in shown[1]


def test_other_judges_are_refused():
    done = run(RESULTS / "students-of-contrast.json", *GROUPS, "--curve", RESULTS / "students-of-contrast-smollm2.json")
    assert done.returncode == 2
    assert "same judges" in done.stderr
