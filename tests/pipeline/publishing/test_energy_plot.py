"""The picture of final energies: a PNG that the energies alone decide."""

import numpy as np
import pytest

from tsdfm.pipeline.publishing.energy_plot import draw_energies


@pytest.mark.parametrize("energies", [
    {"shaped": np.array([3.0, 3.5, 4.0], np.float32), "blind": np.array([5.0, 5.5, 6.0], np.float32)},
    {"blind": np.array([5.0], np.float32)}, {"shaped": np.full(9, 2.5, np.float32)}])
def test_the_same_energies_give_the_same_picture(energies):
    picture = draw_energies(energies)
    assert picture.startswith(b"\x89PNG")
    assert b"matplotlib" not in picture.lower()  # a version in the file would make it differ
    assert draw_energies({arm: values.copy() for arm, values in energies.items()}) == picture
    assert draw_energies({arm: values + np.arange(len(values)) + 1 for arm, values in energies.items()}) != picture
