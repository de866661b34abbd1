"""The shared list of shapes."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark.arg_specs import ARG_SPECS, make_arguments, select
from polycom_jax._errors import InputError


def test_names_are_unique_and_every_spec_has_a_use():
    assert len({spec.name for spec in ARG_SPECS}) == len(ARG_SPECS)
    assert set(ARG_SPECS) == {*select("ci"), *select("primary"), *select("tpu")}


@pytest.mark.parametrize("spec", select("ci"), ids=lambda spec: spec.name)
def test_arguments_are_as_the_spec_says(spec):
    x, coeffs, dy = jax.eval_shape(lambda key: make_arguments(spec, key), jax.random.key(0))
    assert x.shape == dy.shape == spec.shape
    assert x.dtype == dy.dtype == spec.dtype
    assert (coeffs.shape, coeffs.dtype) == ((spec.order + 1,), jnp.float32)
    assert x.size * x.dtype.itemsize == spec.bytes


def test_arguments_repeat_and_differ_from_each_other():
    spec = select("ci")[0]
    first, second = (make_arguments(spec, jax.random.key(0)) for _ in range(2))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first, second))
    assert not jnp.array_equal(first[0], first[2])


def test_quick_specs_are_quick():
    assert max(spec.bytes for spec in select("ci")) <= 2**20


def test_an_unknown_tag_lists_the_known_ones():
    with pytest.raises(InputError, match="Known: ci, primary, tpu"):
        select("primry")  # pyright: ignore[reportArgumentType]
