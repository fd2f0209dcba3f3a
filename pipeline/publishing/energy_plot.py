"""A picture of a dataset's final energies, arm by arm. The same energies always give the same bytes."""

import io

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from tsdfm.schemas.terms import Arm

COLOURS: dict[Arm, str] = {"shaped": "#0072B2", "blind": "#D55E00"}  # Okabe & Ito (2008)
BINS = 48


def draw_energies(energies: dict[Arm, npt.NDArray[np.float32]]) -> bytes:
    """A PNG: one histogram per arm of final energies [rows], nats per token, over common bins, with the means."""
    low, high = (float(bound(each)) for bound, each in ((np.min, _all(energies)), (np.max, _all(energies))))
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    figure = Figure(figsize=(7.2, 3.6), dpi=144, layout="constrained")
    panel = figure.subplots()
    for arm, values in energies.items():
        panel.hist(values, edges.tolist(), color=COLOURS[arm], alpha=0.55, label=f"{arm}: mean {values.mean():.3f}")
        panel.axvline(float(values.mean()), color=COLOURS[arm], linewidth=1.4)
    panel.set_xlabel("final energy of a trajectory, nats per token (lower: more coherent, says the compass)")
    panel.set_ylabel("trajectories")
    panel.legend(frameon=False)
    panel.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the version would change the bytes
    return buffer.getvalue()


def _all(energies: dict[Arm, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.concatenate(list(energies.values()))
