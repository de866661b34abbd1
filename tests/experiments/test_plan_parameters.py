"""What a plan says of parameters that lie whole on every chip."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import pytest

from experiments.plan import outcome
from polycom_jax.models import preset
from polycom_jax.sharding import make_mesh
from polycom_jax.table import Activation, Parameter, activation
from polycom_jax.training import OptimConfig, abstract_state


def test_a_large_parameter_that_nothing_splits_is_a_problem():
    cfg = preset("tiny", num_layers=1)
    mesh = make_mesh(data=4, fsdp=2)
    state = abstract_state(cfg, OptimConfig(), mesh)
    step: Any = SimpleNamespace(mesh=mesh, state=state)
    assert outcome.replicated(step) == []
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    large = jax.ShapeDtypeStruct((1024, 1024), "float32", sharding=whole)
    step.state = SimpleNamespace(params={**state.params, "embed": large})
    assert outcome.replicated(step) == ["parameter ['embed'] lies whole on every chip"]


@pytest.mark.parametrize("name", ["gdn", "srelu"])
def test_numbers_a_channel_of_many_layers_are_none(name: str):
    mesh = make_mesh(fsdp=8)

    def found(which: Activation | str) -> list[str]:
        cfg = preset("tiny", num_layers=32, ffn_width=16512, activation=which)
        state = abstract_state(cfg, OptimConfig(), mesh)
        return outcome.replicated(cast(Any, SimpleNamespace(mesh=mesh, state=state)))

    assert found(name) == []
    start = jax.nn.initializers.ones
    splines = {"knots": Parameter(start, shape=(64,), per="channel")}
    own = activation(lambda x, knots: x * knots[0], splines, name="own")
    assert found(own) == [
        "parameter ['layers'][0]['ffn']['activation']['knots'] lies whole on every chip"
    ]
