"""Strict JAX for every test: eight virtual CPU devices, and rank promotion raises."""

import gc
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

# Before the backend starts: a test must not depend on the accelerator that happens to be there,
# unless it says so by its marker (`-m gpu`, `-m tpu` are run with this variable set by hand).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of small programs, which takes most of their time; what LLVM's higher
# levels do to them is not what is tested.
# Eight devices on two busy cores come to a collective one after the other, and XLA ends the process
# after 40 s of that.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import buckets
import jax
import pytest

# Traces are millions of objects that live on, and to look through all of them over and over takes
# an eighth of the time.
gc.set_threshold(200_000, 50, 100)
# It guards against a loss of power, which no test can see, and a disk takes its time to answer.
os.fsync = lambda fd: None
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)


BACKENDS = {
    "tpu_backend": (("libtpu",), "needs the libtpu wheel (extra plan), and no TPU"),
    "gpu_backend": (
        ("jax_cuda13_plugin", "jax_cuda12_plugin"),
        "needs JAX's CUDA plugin (extra plan-gpu), and no GPU",
    ),
}
"""Marker -> modules, any of which has the compiler, and why it is skipped without."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs another platform's compiler is left out where it is not installed."""
    for marker, (modules, reason) in BACKENDS.items():
        if not any(map(find_spec, modules)):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _what_other_tests_left_is_not_collected() -> Iterator[None]:
    """A failed save collects what Orbax leaves: seconds, if it looked through all of that."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data and compiled programs go to a folder of this test run, never to the user's."""
    os.environ["POLYCOM_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of what all workers compile; POLYCOM_TEST_PROGRAMS names one for several runs."""
    if given := os.environ.get("POLYCOM_TEST_PROGRAMS"):
        return given
    of_worker = tmp_path_factory.getbasetemp()
    of_run = of_worker.parent if "PYTEST_XDIST_WORKER" in os.environ else of_worker
    return str(of_run / "programs")


@pytest.fixture(autouse=True)
def _programs_are_compiled_once(programs: str) -> None:
    """Most of what a test compiles, others have compiled, in this worker or in another one.

    JAX keeps to the first folder that it has compiled for; said before each test, since a program
    of ours that ran in this process may have turned the cache off.
    """
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def server() -> Iterator[buckets.Server]:
    """An emulator of Google Cloud Storage, which all tests of a session share.

    gcsfs and epath keep the address of the first server that they have seen.
    """
    if not buckets.is_installed():
        pytest.skip(buckets.WITHOUT)
    server = buckets.Server()
    with buckets.used(server.url):
        yield server
    server.stop()


@pytest.fixture
def front(server: buckets.Server) -> Iterator[buckets.Front]:
    """A server before the emulator's, and clients that ask it, in child processes too."""
    front = buckets.Front(server.url)
    with buckets.used(front.url):
        yield front
    front.stop()


@pytest.fixture
def bucket(server: buckets.Server) -> str:
    """The place of a new bucket."""
    return server.bucket()


@pytest.fixture(scope="module")
def own_modules(tmp_path_factory: pytest.TempPathFactory):
    """Code of a Hugging Face folder is copied to a folder of the tests and forgotten behind them.

    Otherwise it would go below HF_HOME, and a folder of the same name in another module of tests
    would be looked for where the first one's copy lies.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    copies = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", copies)
        patch.setattr(sys, "path", [*sys.path])
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion: round our own operations (optax's, for one, promote)."""
    with jax.numpy_dtype_promotion("strict"):
        yield
