import jax
import pytest


@pytest.fixture
def x64():
    """Arrays keep float64, which is what constructions are checked in."""
    with jax.enable_x64(True):
        yield
