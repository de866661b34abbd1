"""What a finished run shows: its curve, what its activations became, a sample, what to try next."""

import contextlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.run import plots
from experiments.run.config import PretrainConfig
from experiments.run.folder import Workdir
from experiments.run.metrics import read_metrics
from experiments.run.sampling import Sampling, complete
from experiments.terminal.tables import print_table, table_of
from polycom_jax._errors import InputError
from polycom_jax.data import Tokenizer
from polycom_jax.models import ModelConfig
from polycom_jax.models.layers import per_expert
from polycom_jax.params import Params
from polycom_jax.sharding import fetch
from polycom_jax.storage import Place
from polycom_jax.table import Activation

ROW = 2048
"""Elements of the row that activation shapes are drawn from; groups may ask for a few more."""


def report(
    console: Console,
    workdir: Workdir,
    config: PretrainConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    active: bool,
) -> None:
    """Prints and writes all of it; every process calls it, the `active` one writes."""
    how = Sampling(max_new_tokens=config.run.sample_tokens, seed=config.run.seed)
    text = complete(config.model, params, tokenizer, config.run.sample_prompt, how)[0]
    learned = activation_parameters(config.model, params)
    drawn = activation_parameters(config.model, params, drawn=True)
    if not active:
        return
    title = f"{config.preset}, {config.model.activation_name}"
    records = read_metrics(workdir.metrics)
    read = config.run.eval_tokens
    plots.plot_loss(workdir.plots / "loss", records, title, eval_tokens=read)
    if config.model.is_moe:
        plots.plot_load(workdir.plots / "experts", records, title)
    draw_shapes(workdir.plots / "activations", config.model.activation_fn, drawn, title)
    workdir.write_sample(text)  # Last: it says that all the rest is there.
    if any(learned):
        title = f"what {config.model.activation_name} learned in each layer"
        print_table(console, coefficient_table(title, learned))
    console.rule("sample")
    console.print(text, markup=False, soft_wrap=True)
    console.rule()
    console.print(next_commands(workdir, config), markup=False, soft_wrap=True)


def activation_parameters(
    config: ModelConfig, params: Params, *, drawn: bool = False
) -> list[dict[str, np.ndarray]]:
    """Each layer's learned activation parameters by name, first layer first.

    Where each expert, channel or group has its own, their mean over a layer; as `draw_shapes` takes
    them, if they are to be `drawn`.
    """
    layers, act = [], config.activation_fn
    over = _over_places if drawn else _over_channels
    for group in params["layers"]:
        block = group["moe"] if config.is_moe else group["ffn"]
        stacked = block["activation"]
        stacked = {
            name: jnp.mean(value, axis=1) if per_expert(config, name) else value
            for name, value in stacked.items()
        }
        stacked = over(act, fetch(stacked))
        depth = len(block["norm"])
        layers += [{name: value[i] for name, value in stacked.items()} for i in range(depth)]
    return layers


def _over_channels(act: Activation, params: Params) -> dict[str, np.ndarray]:
    """Means over the last axis, where that runs over channels or groups."""
    return {
        name: np.mean(value, axis=-1) if act.parameters[name].by_channel else np.asarray(value)
        for name, value in params.items()
    }


def _over_places(act: Activation, params: Params) -> dict[str, np.ndarray]:
    """Means over groups, or over channels of one place among those that are read together."""
    found = {}
    for name, value in params.items():
        own, value = act.parameters[name], np.asarray(value)
        if own.by_channel:
            places = own.groups if own.per == "channel" else 1
            value = np.mean(value.reshape(*value.shape[:-1], -1, places), axis=-2)
        found[name] = value
    return found


def row_length(act: Activation) -> int:
    """`ROW`, or the next multiple of the activation's groups."""
    groups = math.lcm(*(each.groups for each in act.parameters.values()))
    return -(-ROW // groups) * groups


def _for_row(act: Activation, means: Params) -> dict[str, np.ndarray]:
    """Parameters for a row of `row_length` elements from means over places."""
    found = {}
    for name, value in means.items():
        own, value = act.parameters[name], np.asarray(value)
        if own.by_channel:
            size = row_length(act) if own.per == "channel" else own.groups
            value = np.tile(value, size // value.shape[-1])
        found[name] = value
    return found


def coefficient_table(
    title: str, layers: list[dict[str, np.ndarray]], **more: Sequence[str]
) -> Table:
    """One row a layer, one column a number, as `number_label` calls it.

    `more` columns, by their names, have a text for each layer.
    """
    labels = [
        number_label(name, i, value.size)
        for name, value in layers[0].items()
        for i in range(value.size)
    ]
    rows = []
    for index, layer in enumerate(layers):
        numbers = [f"{x:+.4f}" for value in layer.values() for x in np.ravel(value)]
        rows.append((str(index), *numbers, *(column[index] for column in more.values())))
    return table_of(title, ("layer", *labels, *more), rows, left=())


def number_label(name: str, index: int, count: int) -> str:
    """Of one of a parameter's `count` numbers; `a_i` multiplies the i-th power."""
    if name == "coeffs":
        return f"a_{index}"
    return name if count == 1 else f"{name}[{index}]"


def normal_quantiles(count: int) -> np.ndarray:
    """`count` values that are distributed as a standard normal variable: its mid-quantiles."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)], np.float32)


def spread(count: int) -> np.ndarray:
    """0 ... count - 1 in an order in which any neighbours are from all parts."""
    step = round(count * (5**0.5 - 1) / 2)
    while math.gcd(step, count) != 1:
        step += 1
    return np.arange(count) * step % count


def draw_shapes(
    path: Place, act: Activation, layers: list[dict[str, np.ndarray]], title: str
) -> None:
    """Draws the activation of each layer, from what `activation_parameters` gives to be drawn.

    PolyNorm's output at an element depends on the whole row, so every activation is applied to one
    fixed row of `row_length` standard-normal quantiles; a gated one with the other factor set to
    one. Some normalise groups of neighbours, so that each group is to have numbers of all sizes.
    """
    width = row_length(act)
    x, order = normal_quantiles(width), spread(width)

    def shape(means: Any) -> np.ndarray:
        rows = (jnp.array(x[order])[None], jnp.ones((1, width), jnp.float32))
        y = np.asarray(act.apply(_for_row(act, means), *rows[: 1 + act.gated]))[0]
        return y[np.argsort(order)]

    start = _over_places(act, jax.device_get(act.init(jax.random.key(0), width)))
    plots.plot_shapes(
        path,
        x,
        shape(start),
        [shape(layer) for layer in layers] if start else [],
        title=title,
        note=f"Applied to one row of {width:,} standard-normal quantiles, spread evenly over groups"
        " of features; dashed: at the start.",
    )


def next_commands(workdir: Workdir, config: PretrainConfig) -> str:
    """Commands that make sense after this run."""
    root, python = shlex.quote(str(workdir.root)), "python -m experiments"
    other = "swiglu" if config.model.activation != "swiglu" else "poly_norm"
    rival = shlex.quote(f"{workdir.root}-{other}")
    prompt = shlex.quote(config.run.sample_prompt)
    longer, optim = 2 * config.run.steps, config.optim
    config_file = shlex.quote(str(workdir.config))
    on, anew = "", shlex.quote(f"{workdir.root}-{longer}")
    compared = []
    with contextlib.suppress(InputError):  # its options, or its width, may be none of the other's
        replace(config.model, activation=other)
        compared = [
            f"  {python}.pretrain --config {config_file} --workdir {rival} --activation {other}"
        ]
    if optim.schedule != "constant" and (optim.decay_steps or config.run.steps) < longer:
        last = optim.peak_learning_rate * optim.final_learning_rate_fraction
        on = f"  # goes on at the schedule's last learning rate, {last:g}"
    return "\n".join(
        [
            f"Plots: {workdir.plots}   Numbers: {workdir.metrics}   Sample: {workdir.sample}",
            "Next:",
            f"  {python}.generate {root} --prompt {prompt}",
            f"  {python}.pretrain {root} --steps {longer}{on}",
            f"  {python}.pretrain --config {config_file} --workdir {anew} --steps {longer}",
            *compared,
            f"  tensorboard --logdir {root}/tensorboard",
        ]
    )
