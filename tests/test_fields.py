"""No config takes a value that its fields are not declared to hold."""

import contextlib
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from experiments.benchmark.options import Options
from experiments.generate import GenerateConfig
from experiments.run.config import PretrainConfig, default_config
from polycom_jax import InputError
from polycom_jax._fields import LARGEST, check_fields


def configs(config: Any) -> list[Any]:
    """The config and those within it."""
    inner = [getattr(config, field.name) for field in fields(config)]
    return [config, *(found for one in inner if is_dataclass(one) for found in configs(one))]


ALL = [*configs(default_config("moe-tiny")), GenerateConfig(), Options()]
PLACES = [(config, field.name) for config in ALL for field in fields(config)]


def test_all_configs_of_a_run_are_here():
    assert {type(config).__name__ for config in ALL} == {
        *("PretrainConfig", "ModelConfig", "ActivationOptions", "MoEConfig", "OptimConfig"),
        *(
            "Multipliers",
            "DataConfig",
            "RopeScaling",
            "MeshConfig",
            "HostsConfig",
            "RunConfig",
            "GenerateConfig",
            "Options",
        ),
    }


def is_fine(hint: Any, value: Any) -> bool:
    """Whether a value of this kind may stand there."""
    text = str(hint)
    kind = {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value))
    if value is None:
        return "None" in text or "Optional" in text
    if isinstance(value, str) and "Literal" in text:
        return False
    return kind is not None and (kind in text or (kind == "int" and "float" in text))


@pytest.mark.parametrize(
    ("config", "name"), PLACES, ids=[f"{type(config).__name__}.{name}" for config, name in PLACES]
)
def test_a_value_of_another_kind_is_refused_by_name(config: Any, name: str):
    hint = get_type_hints(type(config))[name]
    refused = 0
    for value in ("two", 1.5, True, None, b"x", [1], {"a": 1}, object(), ("x", 3), -(10**12)):
        if is_fine(hint, value) and value != -(10**12):
            continue
        with pytest.raises(InputError, match=rf"\b{name}\b") as caught:
            replace(config, **{name: value})
        assert "\n" not in str(caught.value)
        refused += 1
    assert refused >= 6


@pytest.mark.filterwarnings("ignore:optim.coefficient_multiplier:DeprecationWarning")
@given(
    place=st.sampled_from([p for p in PLACES if not is_dataclass(getattr(*p))]),
    value=st.one_of(
        st.integers(max_value=-2),
        st.integers(min_value=2**32),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.lists(st.integers(), max_size=2),
        st.none(),
    ),
)
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_any_value_is_refused_or_of_the_declared_kind(place: tuple[Any, str], value: Any):
    config, name = place
    with contextlib.suppress(InputError):  # Anything else is a defect.
        made = replace(config, **{name: value})
        assert is_fine(get_type_hints(type(config))[name], getattr(made, name))


@dataclass(frozen=True)
class Some:
    count: int = 1
    share: float = 0.5
    kind: Literal["plain", "fancy"] = "plain"
    names: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": LARGEST + 1}, f"p.count={LARGEST + 1} must be at most {LARGEST}"),
        ({"count": -LARGEST - 1}, f"must be at least {-LARGEST}"),
        ({"count": 10**5000}, "p.count=a number of 16610 bits must be at most"),
        ({"limit": "3"}, "p.limit='3' must be a whole number"),
        ({"share": 1e39}, "p.share=1e[+]39 must be at most 3.4e[+]38"),
        ({"kind": "fency"}, "Unknown p.kind 'fency'. Did you mean 'fancy'"),
        ({"names": ("a", 3)}, r"p.names\[1\]=3 must be text"),
        ({"names": "abc"}, "p.names='abc' must be a tuple"),
        ({"names": ("a\0",)}, "without NUL"),
        ({"names": ("\udcff",)}, "that UTF-8 can hold"),
    ],
)
def test_the_rule_is_told(values: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        check_fields(Some(**values), "p.", wide=("seed",))


def test_numbers_of_numpy_and_wide_ones_are_numbers():
    values: dict[str, Any] = {"count": np.int32(3), "share": np.float32(0.5), "seed": 2**32 - 1}
    check_fields(Some(**values), wide=("seed",))


def test_tokens_a_step_are_counted():
    config: PretrainConfig = default_config("tiny")
    data = replace(config.data, batch_size=2**27)
    with pytest.raises(InputError, match=r"tokens a step.*nearest: batch_size=8388607"):
        replace(config, data=data)
