"""What bits depend on, and the options that keep them the same."""

import jax
import jax.numpy as jnp
import pytest

from experiments.run import environment, host_collectives
from experiments.run.config import RunConfig


def test_a_difference_is_named_and_what_was_not_recorded_is_none():
    now = {"jax": "0.12", "cores": "2", "hosts": "1"}
    assert environment.changed(now, now) == ""
    assert environment.changed({}, now) == ""
    assert environment.changed(now | {"cores": "8", "jax": ""}, now) == (
        "jax 'none' before, '0.12' now; cores '8' before, '2' now"
    )


def test_the_facts_are_those_that_bits_depend_on():
    found = environment.facts(RunConfig())
    names = {"jax", "jaxlib", "processor", "cores", "NPROC", "devices", "hosts", "XLA_FLAGS"}
    names |= {"platform", "LIBTPU_INIT_ARGS"}  # libtpu's build, or CUDA's version
    assert set(found) == names | {"deterministic options", *environment.DECIDING}
    assert found["devices"] == f"{jax.device_count()} x cpu"
    assert found["platform"] == "cpu"
    assert found["deterministic options"] == ""


def test_what_may_change_more_than_rounding_is_said_apart():
    now = environment.facts(RunConfig())
    assert environment.warnings(now, now) == []
    assert environment.warnings({}, now) == []  # of an earlier version, which kept none
    before = now | {"grain": "0.1", "cores": "99"}
    more, less = environment.warnings(before, now)
    assert more.startswith("warning: another run from here on")
    assert "grain '0.1' before" in more
    assert less.startswith("warning: equal from here on only up to rounding: cores '99' before")
    before = now | {"devices": "3 x cpu"}
    for by_device, start in ((False, "warning: equal"), (True, "warning: another run")):
        (line,) = environment.warnings(before, now, by_device=by_device)
        assert line.startswith(start)


def test_another_number_of_threads_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NPROC", raising=False)
    before = environment.facts(RunConfig())
    monkeypatch.setenv("NPROC", "2")
    found = environment.changed(before, environment.facts(RunConfig()))
    assert found == "NPROC 'none' before, '2' now"


def test_the_deterministic_options_are_known_to_xla_and_written_down(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = RunConfig(deterministic=True)
    assert environment.deterministic(RunConfig()) == {}
    options = environment.deterministic(run)
    assert environment.facts(run)["deterministic options"] == "xla_gpu_deterministic_ops=True"
    monkeypatch.undo()
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    assert lowered.compile(compiler_options=options)(jnp.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_nonsense": True})


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_each_time():
    options = environment.deterministic(RunConfig(deterministic=True))
    index = jax.random.randint(jax.random.key(0), (1 << 20,), 0, 64)
    values = jax.random.normal(jax.random.key(1), (1 << 20,))

    def scatter(values: jax.Array) -> jax.Array:
        return jnp.zeros(64).at[index].add(values)

    compiled = jax.jit(scatter).lower(values).compile(compiler_options=options)
    assert len({compiled(values).tobytes() for _ in range(20)}) == 1


def test_the_tests_own_virtual_devices_have_time_too():
    flags = host_collectives.os.environ["XLA_FLAGS"]
    assert "--xla_cpu_collective_call_terminate_timeout_seconds=600" in flags


@pytest.mark.parametrize(
    ("flags", "takes"),
    [
        ("", False),
        ("--xla_force_host_platform_device_count=8", True),
        (
            "--xla_force_host_platform_device_count=8"
            " --xla_cpu_collective_call_terminate_timeout_seconds=5",
            False,
        ),
    ],
)
def test_collectives_have_time_where_devices_are_virtual(
    flags: str, takes: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    assert host_collectives.patient_collectives() is takes
    found = host_collectives.os.environ["XLA_FLAGS"]
    assert found.startswith(flags)
    assert ("terminate_timeout_seconds=600" in found) is takes
