"""Which implementation runs, and that the environment decides at each call."""

import pytest
import torch

from tsdfm.kernels.dispatch import backend
from tsdfm.schemas.base import InputError


class OnCuda:
    is_cuda = True


def test_the_device_decides(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("TSDFM_KERNELS", raising=False) if value is None else monkeypatch.setenv("TSDFM_KERNELS", value)
        assert backend(torch.zeros(1)) == "torch"
        assert backend(OnCuda()) == "triton"


@pytest.mark.parametrize("name", ["reference", "torch", "triton"])
def test_the_environment_decides_for_every_device(monkeypatch, name):
    monkeypatch.setenv("TSDFM_KERNELS", name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend(torch.zeros(1)) == backend(OnCuda()) == name


def test_triton_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setenv("TSDFM_KERNELS", "triton")
    for value in (None, "", "0"):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False) if value is None else monkeypatch.setenv("TRITON_INTERPRET", value)
        assert backend(OnCuda()) == "triton"
        with pytest.raises(InputError, match=r"TSDFM_KERNELS=triton: there is no GPU here.*TRITON_INTERPRET=1"):
            backend(torch.zeros(1))


def test_an_unknown_name_is_refused(monkeypatch):
    monkeypatch.setenv("TSDFM_KERNELS", "cuda")
    with pytest.raises(InputError, match=r"TSDFM_KERNELS=cuda.*reference, torch, triton"):
        backend(torch.zeros(1))
