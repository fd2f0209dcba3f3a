"""Training windows of a published dataset with the loader of the package: drawn at random, checked, mixed, resumable.

    python windows_package.py WHERE          # a folder, a URI, or hf://datasets/USER/NAME@REVISION

The windows are those of windows_datasets.py. Which of them a batch holds is drawn: every row once in an epoch, at one of its n
windows, by a seed; checksums are checked as files are read. `budgets` may name several n, and `DataConfig` several datasets.
"""

import sys

from torch.utils.data import DataLoader

from tsdfm.pipeline import batches


def main(where: str) -> None:
    """The first batches, as a training loop gets them."""
    for batch in DataLoader(batches(where, "candidates", budgets={4: 1.0}, updates=3, batch_size=8), batch_size=None):
        jumps = batch.target >= 0
        print(f"{len(batch)} windows, {int(jumps.sum())} jumps, best candidate's weight {batch.weights[jumps].amax(-1).mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
