"""Strict JAX for every test: eight virtual CPU devices, and rank promotion raises."""

import os

# Before the backend starts: a test must not depend on the accelerator that happens to be there,
# unless it says so by its marker (`-m gpu`, `-m tpu` are run with this variable set by hand).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of small programs; LLVM's higher levels take a third of the time, and
# what they do is not what is tested.
# Eight devices on two busy cores come to a collective one after the other, and XLA ends the process
# after 40 s of that.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data and compiled programs go to a folder of this test run, never to the user's."""
    os.environ["POLYCOM_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion: round our own operations (optax's, for one, promote)."""
    with jax.numpy_dtype_promotion("strict"):
        yield
