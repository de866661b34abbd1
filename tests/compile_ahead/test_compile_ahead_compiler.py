from importlib import metadata

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import compile_ahead
from polycom_jax._errors import InputError
from polycom_jax.compile_ahead.compiler import does_not_fit
from polycom_jax.compile_ahead.platforms import ENVIRONMENT


@pytest.mark.parametrize(
    ("message", "memory", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total"
            " memory required for HLO temporaries (12.02T) exceeds available HBM (30.75G). HLO"
            " module: jit_f.\nSee more.",
            "HBM",
            int(12.02 * 2**40),
            int(30.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 44.50G of 15.75G hbm."
            " Exceeded hbm capacity by 28.75G.",
            "HBM",
            int(44.5 * 2**30),
            int(15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack"
            " for %custom-call: Scoped allocation with size 20.00M and limit 16.00M exceeded scoped"
            " vmem limit by 4.00M.",
            "VMEM",
            20 * 2**20,
            16 * 2**20,
        ),
        (
            "RESOURCE_EXHAUSTED: Allocation (size=268435456) would exceed memory (size=134217728)"
            " :: #allocation3 [shape = 'u8[268435456]{0}', space=vmem, size = 0x10000000]",
            "VMEM",
            2**28,
            2**27,
        ),
        ("RESOURCE_EXHAUSTED: something new about hbm", "HBM", None, None),
    ],
)
def test_memory_that_ran_out_is_reported_in_bytes(message, memory, needed, available):
    error = does_not_fit(message)
    assert error is not None
    assert (error.memory, error.needed, error.available) == (memory, needed, available)
    assert "\n" not in str(error)
    if needed is not None:
        assert f"{needed:,} of {available:,} bytes" in str(error)


def test_other_errors_are_not_about_memory():
    assert does_not_fit("INTERNAL: Mosaic failed to compile TPU kernel") is None


def test_the_environment_is_set_where_it_is_not_set_already():
    environment = {"TPU_SKIP_MDS_QUERY": "0"}
    compile_ahead.without_tpu(environment)
    assert environment == {**ENVIRONMENT, "TPU_SKIP_MDS_QUERY": "0"}


def test_devices_never_touches_the_environment(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1")
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"TPU_SKIP_MDS_QUERY=1 and .*without_tpu"):
        compile_ahead.devices("v5e")


@pytest.mark.parametrize(
    ("chip", "topology", "says"),
    [
        ("v5", None, "Did you mean"),
        ("v5e", "2x2x1", "NxN, for instance 2x2"),
        ("v5p", "4x4", "NxNxN"),
        ("v4", "2x0x1", "NxNxN"),
    ],
)
def test_topologies_are_checked_before_libtpu_is_asked(chip, topology, says):
    with pytest.raises(InputError, match=says):
        compile_ahead.devices(chip, topology)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match="libtpu"):
        compile_ahead.devices("v5e")


def test_a_program_compiles_for_where_its_arguments_are():
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    device = jax.devices()[1]
    compiled = compile_ahead.compile(lambda x: x @ x.T, compile_ahead.place(x, device))
    assert jax.tree.leaves(compiled.input_shardings)[0].device_set == {device}
    lowered = jax.jit(jnp.sin).lower(compile_ahead.place(x, device))
    with pytest.raises(InputError, match="lowered"):
        compile_ahead.compile(lowered, x)
    with pytest.raises(InputError, match="Unknown TPU or GPU device kind 'cpu'"):
        compile_ahead.predict(compile_ahead.compile(lowered))
