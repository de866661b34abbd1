"""Suite gpu: what XLA makes of operations, blocks and training steps for GPUs that are not here.

It needs JAX's CUDA plugin (extra `plan-gpu`). Operations are counted in passes over memory: reads
and writes of all of x. Blocks and steps are compiled twice, with matrix products by Triton and by
cuBLAS, between which a card would choose.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from experiments.benchmark import shapes
from experiments.benchmark.arg_specs import ARG_SPECS, ArgSpec
from experiments.benchmark.options import Options
from experiments.benchmark.predicted import (
    MIB,
    REFERENCES,
    SHAPE,
    Suite,
    blocks,
    compiled_for,
    notes,
    operations,
    predict_each,
    rows,
)
from experiments.benchmark.results import Case, Result, Tell
from experiments.run.config import PretrainConfig, default_config
from experiments.run.planned import find_slice, training_step
from polycom_jax import compile_ahead as aot
from polycom_jax.compile_ahead import PRODUCT_BACKENDS
from polycom_jax.models import mfu
from polycom_jax.table import ACTIVATIONS

GIB = 2**30
STEPS = ("dense-110m", "dense-1b")
STEP_ACTIVATIONS = ("poly_norm", "poly_relu", "relu2", "swiglu")
WITHOUT_PRODUCTS: Mapping[str, Any] = {}


def _numbers(prediction: aot.Prediction) -> dict[str, float]:
    return {
        "kernels": prediction.kernels,
        "MiB read": prediction.bytes_read / MIB,
        "MiB written": prediction.bytes_written / MIB,
        "of the floor": prediction.bytes_accessed / max(prediction.floor_bytes, 1),
        "MiB temporaries": prediction.temporary_bytes / MIB,
    }


SUITE = Suite(
    name="gpu",
    activations=tuple(ACTIVATIONS),
    implementations=("xla", "gpu", "pallas_gpu"),
    numbers=_numbers,
)


def cases(options: Options) -> list[Case]:
    """For each card: operations at each shape and the block, by pass; whole steps."""
    aot.without_gpu()
    chosen = options.shapes or (SHAPE,)
    specs = [spec for spec in ARG_SPECS if spec.name in chosen]
    models = [options.model] if options.model is not None else STEPS
    by_part: dict[str, Callable[[str], list[Case]]] = {
        "ops": lambda card: [
            _case(f"ops {spec.name} {which} on {card}", _operation, spec, options, card, which)
            for which in options.passes
            for spec in specs
        ],
        "ffn": lambda card: [
            _case(
                f"ffn {which} on {card}, products by {products}",
                *(compiled_for, SUITE, options, blocks, card, which, PRODUCT_BACKENDS[products]),
            )
            for which in options.passes
            for products in options.products
        ],
        "step": lambda card: [
            _case(
                f"step of {model} on {card}, products by {products}",
                *(_steps, replace(options, model=model), card, PRODUCT_BACKENDS[products]),
            )
            for model in models
            for products in options.products
        ],
    }
    return [case for card in options.gpus for part in options.parts for case in by_part[part](card)]


def _case(name: str, f: Callable[..., Result], *words: Any) -> Case:
    return Case(SUITE.name, name, partial(f, *words))


def _operation(spec: ArgSpec, options: Options, card: str, which: str, tell: Tell) -> Result:
    """An operation; its traffic also in passes over x."""
    numbers = partial(_passes, spec, options)
    suite = replace(SUITE, numbers=numbers)
    find = partial(operations, spec)
    return compiled_for(suite, options, find, card, which, WITHOUT_PRODUCTS, tell)


def _passes(spec: ArgSpec, options: Options, prediction: aot.Prediction) -> dict[str, float]:
    x = replace(spec, dtype=options.dtype or spec.dtype).bytes
    return {
        "reads of x": prediction.bytes_read / x,
        "writes of x": prediction.bytes_written / x,
        **_numbers(prediction),
    }


def _steps(options: Options, card: str, xla: Mapping[str, Any], tell: Tell) -> Result:
    """Whole training steps on one card, of the model's own recipe."""
    where = find_slice(f"gpu:{card}")
    names = dict.fromkeys((*(options.activations or STEP_ACTIVATIONS), *REFERENCES))

    def lowered(name: str) -> jax.stages.Lowered:
        return training_step(_config(options, name), where).lowered

    lower = {name: partial(lowered, name) for name in names}
    found = predict_each(lower, options, card, xla, tell)
    cfg = shapes.model(options, REFERENCES[0])
    return Result(
        SUITE.name,
        f"a step of {shapes.describe(options, cfg)}, one {card}",
        rows(found.predictions, partial(_step_numbers, options)),
        found.left_out,
        (*notes(found.predictions), *(f"compiled with {k}={v}" for k, v in xla.items())),
        kind="predicted",
        failures=found.failures,
    )


def _config(options: Options, activation: str) -> PretrainConfig:
    """A run on one device with the settings that were asked for; float16 scales its losses."""
    config = default_config(shapes.name(options))
    model = replace(shapes.model(options, activation), document_mask=config.model.document_mask)
    data = replace(config.data, batch_size=shapes.batch_size(options))
    optim = config.optim
    if model.dtype == "float16":
        optim = replace(optim, loss_scaling="dynamic")
    return replace(config, model=model, data=data, optim=optim)


def _step_numbers(options: Options, prediction: aot.Prediction) -> dict[str, float]:
    cfg, rate = shapes.model(options, REFERENCES[0]), shapes.batch_size(options)
    tokens = rate * cfg.context_length / prediction.seconds
    utilisation = partial(mfu, cfg, tokens, cfg.context_length, prediction.chip.peak_flops)
    return {
        "kernels": prediction.kernels,
        "GiB moved": prediction.bytes_accessed / GIB,
        "GiB temporaries": prediction.temporary_bytes / GIB,
        "GiB at the peak": prediction.peak_hbm_bytes / GIB,
        "of the card": prediction.peak_hbm_bytes / prediction.chip.hbm_bytes,
        "MFU, PaLM": utilisation(),
        "MFU, causal": utilisation(attention="causal"),
    }
