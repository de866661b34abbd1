"""What the compiler says about a step that is split over a mesh."""

import jax
import jax.numpy as jnp
import pytest

from polycom_jax.models import preset
from polycom_jax.sharding import make_mesh
from polycom_jax.training import OptimConfig, abstract_state, make_model_step


def test_a_split_step_compiles_without_full_copies(capfd: pytest.CaptureFixture[str]):
    # Wide enough that the compiler has a choice: in a smaller model it copies nothing anyway.
    cfg = preset("tiny", num_layers=1)
    mesh, optim = make_mesh(fsdp=4, tensor=2), OptimConfig()
    rows = jax.ShapeDtypeStruct((8, 256), jnp.int32)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch: dict[str, jax.ShapeDtypeStruct] = dict.fromkeys(names, rows)
    batch["mask"] = jax.ShapeDtypeStruct(rows.shape, jnp.bool_)
    state = abstract_state(cfg, optim, mesh)
    make_model_step(cfg, optim, 10, mesh).lower(state, batch).compile()
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
