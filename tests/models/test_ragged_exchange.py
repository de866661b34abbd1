"""Experts through the TPU's own compiler: rows travel by the ragged exchange, both ways."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from polycom_jax import compile_ahead
from polycom_jax import params as pm
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.models import MoEConfig, preset
from polycom_jax.models.experts import run_experts
from polycom_jax.models.moe import moe_specs
from polycom_jax.sharding import Rules, make_mesh

pytestmark = pytest.mark.tpu_backend

TOKENS, WIDTH = 4096, 256


@pytest.mark.parametrize("chip", [pytest.param("v5e", marks=pytest.mark.exhaustive), "v5p"])
def test_rows_travel_by_the_ragged_exchange(chip):
    cfg = preset("moe-1b-7b", embed_dim=WIDTH, gated_width=256, moe=MoEConfig(16, 4))
    compile_ahead.without_tpu()
    mesh, rules = make_mesh(data=1, expert=4, devices=compile_ahead.devices(chip)), Rules()

    def on(spec: PartitionSpec, shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def abstract(spec: pm.ParamSpec) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if spec.role == "coefficient" else jnp.bfloat16
        return on(rules.partition(spec.axes), spec.shape, dtype)

    specs = {name: spec for name, spec in moe_specs(cfg).items() if name not in ("norm", "router")}
    tokens = rules.partition(("batch", None))

    def run(params: Any, y: Any, weights: Any, chosen: Any, dy: Any) -> Any:
        def f(params: Any, y: Any, weights: Any) -> Any:
            return run_experts(cfg, params, y, weights, chosen, rules)

        out, pull, dropped = jax.vjp(f, params, y, weights, has_aux=True)
        return out, dropped, pull(dy)

    with compiling_for("tpu"), jax.set_mesh(mesh):
        lowered = jax.jit(run).lower(
            pm.map_specs(abstract, specs),
            on(tokens, (TOKENS, WIDTH), jnp.bfloat16),
            on(tokens, (TOKENS, 4), jnp.float32),
            on(tokens, (TOKENS, 4), jnp.int32),
            on(tokens, (TOKENS, WIDTH), jnp.bfloat16),
        )
    text = compile_ahead.compile(lowered).as_text() or ""
    # Rows and weights there, results back; and the same three for their gradients.
    assert len(re.findall(r" ragged-all-to-all(?:-start)?\(", text)) == 6
