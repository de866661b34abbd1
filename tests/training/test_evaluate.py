import math

import jax
import numpy as np
import pytest

from polycom_jax import InputError, models
from polycom_jax.training import evaluate, make_eval_step, put_batch
from polycom_jax.training.loss import cross_entropy


def test_every_unmasked_target_counts_once_on_any_mesh(model, meshes, initial, make_batch):
    mesh, cfg = "data 2, fsdp 2, tensor 2", model()
    batches = [make_batch(seed) for seed in range(3)]
    result = evaluate(
        make_eval_step(cfg, meshes[mesh]),
        initial(mesh).params,
        (put_batch(batch, meshes[mesh]) for batch in batches),
        num_bytes=777,
    )
    nats, targets = 0.0, 0
    params = jax.tree.map(np.asarray, initial("one device").params)
    forward = jax.jit(models.forward, static_argnums=0)
    for batch in batches:
        where = {name: batch[name] for name in ("segment_ids", "positions")}
        logits = forward(cfg, params, batch["tokens"], **where)
        each = np.asarray(cross_entropy(logits, batch["targets"]), np.float64)
        nats, targets = nats + each[batch["mask"]].sum(), targets + batch["mask"].sum()
    assert result["tokens"] == targets
    assert result["loss"] == pytest.approx(nats / targets, rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / 777, rel=1e-6)


def test_sums_over_batches_are_float64():
    sums = [{"nats": np.float32(2.0**24), "targets": np.float32(2.0**24)}]
    sums += [{"nats": np.float32(1), "targets": np.float32(1)}] * 3
    result = evaluate(lambda _, batch: batch, None, sums, num_bytes=1)
    assert result["tokens"] == 2**24 + 3
    assert result["bits_per_byte"] * math.log(2) == pytest.approx(2**24 + 3, abs=1e-6)


def test_the_next_batch_is_under_way_before_a_result_is_read():
    events = []

    class Result(float):
        def __float__(self):
            events.append(f"read {int(self)}")
            return 1.0

    def eval_step(_, batch):
        events.append(f"start {batch}")
        return {"nats": Result(batch), "targets": 1.0}

    evaluate(eval_step, None, [0, 1, 2], num_bytes=3)
    assert events == ["start 0", "start 1", "read 0", "start 2", "read 1", "read 2"]


@pytest.mark.parametrize("batches", [[], [{"nats": 0.0, "targets": 0.0}]])
def test_nothing_to_evaluate_is_refused(batches):
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(lambda _, batch: batch, None, batches, num_bytes=10)
