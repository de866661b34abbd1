"""The denominators of MFU."""

from types import SimpleNamespace

import jax
import pytest

from experiments.benchmark import rates


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("TPU v5 lite", 197e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GB200", None),
        ("Tesla T4", None),
    ],
)
def test_a_device_has_its_own_peak_or_none(monkeypatch, kind: str, peak: float | None):
    device = SimpleNamespace(platform="gpu", device_kind=kind)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert rates.peak_flops("bfloat16")[0] == peak


def test_a_measured_peak_goes_by_the_clock_of_what_is_divided_by_it(monkeypatch):
    monkeypatch.setattr(rates, "SIZE", 8)
    ticks = iter(range(100))
    # Every reading of this clock is a second after the one before.
    assert rates.peak_flops("float32", lambda: next(ticks))[0] == 2 * 8**3
