"""Which version runs, and what is said when the one asked for cannot."""

import jax.numpy as jnp
import pytest

from polycom_jax._errors import InputError
from polycom_jax.kernels import implementations
from polycom_jax.kernels.implementations import Kernel, Operation, ShapeRule


def refuse(x, **_):
    return None if x.size < 5 else f"it takes at most 4 elements, not {x.size}"


OPERATION = Operation(
    "scale",
    {
        "xla": Kernel(lambda x, by=1: x * by),
        "narrow": Kernel(lambda x, by=1: x * by + 100, refuse),
    },
)


@pytest.fixture
def prefer_narrow(monkeypatch):
    monkeypatch.setattr(implementations, "PREFERENCE", {"cpu": ("absent", "narrow", "xla")})


def test_a_named_version_runs_with_its_options():
    assert OPERATION(jnp.ones(2), implementation="xla", by=3).tolist() == [3, 3]
    assert OPERATION(jnp.ones(2), implementation="narrow", by=3).tolist() == [103, 103]


def test_a_named_version_that_cannot_run_says_why():
    with pytest.raises(InputError, match=r"scale: .*'narrow' cannot run here: it takes at most 4"):
        OPERATION(jnp.ones(5), implementation="narrow")


def test_an_unknown_version_lists_the_known_ones():
    with pytest.raises(InputError, match=r"implementation of scale 'narow'.*'narrow'.*narrow, xla"):
        OPERATION(jnp.ones(5), implementation="narow")


@pytest.mark.usefixtures("prefer_narrow")
def test_none_takes_the_first_preferred_version_that_can_run():
    assert OPERATION(jnp.ones(2)).tolist() == [101, 101]
    assert OPERATION(jnp.ones(5)).tolist() == [1] * 5


def test_a_preference_may_be_for_some_shapes_only(monkeypatch):
    wide = ShapeRule("narrow", lambda shape: shape[-1] >= 3)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(implementations, "PREFERENCE", {"cpu": (wide, "xla")})
    assert OPERATION(jnp.ones(2)).tolist() == [1, 1]
    assert OPERATION(jnp.ones(3)).tolist() == [101] * 3


def test_a_rule_for_shapes_is_asked_only_about_a_version_that_there_is(monkeypatch):
    rule = ShapeRule("blocks", lambda shape: shape[1] > 8)
    monkeypatch.setattr(implementations, "PREFERENCE", {"cpu": (rule, "xla")})
    assert OPERATION(jnp.ones(2)).tolist() == [1, 1]


def test_an_unlisted_backend_takes_xla(monkeypatch):
    monkeypatch.setattr(implementations, "PREFERENCE", {})
    assert OPERATION(jnp.ones(2)).tolist() == [1, 1]


def test_every_preference_ends_with_the_version_that_takes_everything():
    for entries in implementations.PREFERENCE.values():
        names = [e.implementation if isinstance(e, ShapeRule) else e for e in entries]
        assert set(names) <= {
            *implementations.IMPLEMENTATIONS,
            *implementations.ATTENTION_IMPLEMENTATIONS,
            *implementations.GROUPED_IMPLEMENTATIONS,
        }
        assert names[-1] == "xla"
