"""The notebook of a script in cells: `python tests/examples/notebook.py` writes quickstart.ipynb from quickstart.py."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def notebook(script: str) -> str:
    """A script whose cells begin with '# %%' (or '# %% [markdown]') as the JSON of a notebook without outputs."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:]):
        head, _, body = part.partition("\n")
        text = "markdown" in head
        lines = body.strip("\n").split("\n")
        if text:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
        cell: dict[str, Any] = {"cell_type": "markdown" if text else "code", "id": f"cell-{number}", "metadata": {}, "source": source}
        cells.append(cell if text else cell | {"execution_count": None, "outputs": []})
    data = {"cells": cells, "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                                         "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "quickstart.ipynb").write_text(notebook((HERE / "quickstart.py").read_text()))
