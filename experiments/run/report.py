"""What a finished run shows: its curve, what its activations became, a sample, what to try next."""

import math
import shlex
from collections.abc import Sequence
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
from polycom_jax.data import Tokenizer
from polycom_jax.models import ModelConfig
from polycom_jax.models.layers import per_expert
from polycom_jax.params import Params
from polycom_jax.sharding import fetch
from polycom_jax.storage import Place
from polycom_jax.table import Activation

ROW = 2048
"""Elements of the row that activation shapes are drawn from."""


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
    if not active:
        return
    title = f"{config.preset}, {config.model.activation_name}"
    records = read_metrics(workdir.metrics)
    read = config.run.eval_tokens
    plots.plot_loss(workdir.plots / "loss", records, title, eval_tokens=read)
    if config.model.is_moe:
        plots.plot_load(workdir.plots / "experts", records, title)
    draw_shapes(workdir.plots / "activations", config.model.activation_fn, learned, title)
    workdir.write_sample(text)  # Last: it says that all the rest is there.
    if any(learned):
        title = f"what {config.model.activation_name} learned in each layer"
        print_table(console, coefficient_table(title, learned))
    console.rule("sample")
    console.print(text, markup=False, soft_wrap=True)
    console.rule()
    console.print(next_commands(workdir, config), markup=False, soft_wrap=True)


def activation_parameters(config: ModelConfig, params: Params) -> list[dict[str, np.ndarray]]:
    """Each layer's learned activation parameters by name, first layer first.

    Where each expert, channel or group has its own, their mean over a layer.
    """
    layers, act = [], config.activation_fn
    for group in params["layers"]:
        block = group["moe"] if config.is_moe else group["ffn"]
        stacked = block["activation"]
        stacked = {
            name: jnp.mean(value, axis=1) if per_expert(config, name) else value
            for name, value in stacked.items()
        }
        stacked = _over_channels(act, fetch(stacked))
        depth = len(block["norm"])
        layers += [{name: value[i] for name, value in stacked.items()} for i in range(depth)]
    return layers


def _over_channels(act: Activation, params: Params) -> dict[str, np.ndarray]:
    """Means over the last axis, where that runs over channels or groups."""
    return {
        name: np.mean(value, axis=-1) if act.parameters[name].by_channel else np.asarray(value)
        for name, value in params.items()
    }


def _for_row(act: Activation, means: Params) -> dict[str, np.ndarray]:
    """Parameters for a row of `ROW` elements from such means."""
    found = {}
    for name, value in means.items():
        own = act.parameters[name]
        size = {"channel": ROW, "group": own.groups}.get(own.per)
        value = np.asarray(value)
        if size is not None:
            value = np.broadcast_to(value[..., None], (*value.shape, size))
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


def draw_shapes(
    path: Place, act: Activation, layers: list[dict[str, np.ndarray]], title: str
) -> None:
    """Draws the activation of each layer.

    PolyNorm's output at an element depends on the whole row, so every activation is applied to one
    fixed row of `ROW` standard-normal quantiles; a gated one with the other factor set to one.
    """
    x = normal_quantiles(ROW)

    def shape(means: Any) -> np.ndarray:
        rows = (jnp.array(x)[None], jnp.ones((1, ROW), jnp.float32))
        return np.asarray(act.apply(_for_row(act, means), *rows[: 1 + act.gated]))[0]

    width = math.lcm(ROW, *(each.groups for each in act.parameters.values()))
    start = _over_channels(act, jax.device_get(act.init(jax.random.key(0), width)))
    plots.plot_shapes(
        path,
        x,
        shape(start),
        [shape(layer) for layer in layers] if start else [],
        title=title,
        note=f"Applied to one row of {ROW:,} standard-normal quantiles; dashed: at the start.",
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
            f"  {python}.pretrain --config {config_file} --workdir {rival} --activation {other}",
            f"  tensorboard --logdir {root}/tensorboard",
        ]
    )
