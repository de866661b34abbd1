"""Figures, tables and hints at the end of a run."""

import contextlib
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

import polycom_jax as pc
from experiments.run import plots, report
from experiments.run.config import default_config
from experiments.run.folder import Workdir
from polycom_jax import models
from polycom_jax.row import Parameter
from polycom_jax.table import ACTIVATIONS, Activation, ActivationOptions, get_activation

INIT = jax.jit(models.init, static_argnums=0)


def printed(activation: str) -> str:
    cfg = models.preset("tiny", activation=activation, num_layers=3, embed_dim=8, vocab_size=8)
    layers = report.activation_parameters(cfg, INIT(cfg, jax.random.key(0)))
    assert len(layers) == 3
    console = Console(width=100)
    with console.capture() as capture:
        console.print(report.coefficient_table(activation, layers))
    return capture.get()


def test_the_table_has_a_row_a_layer_and_names_the_powers():
    shown = printed("poly_norm")
    for text in ("a_0", "a_3", "+0.3333", "+0.0000", "poly_norm"):
        assert text in shown
    assert shown.count("+0.0000") == 3
    assert shown.count("+0.3333") == 9


def test_the_table_shows_other_learned_numbers_too():
    assert "slope" in printed("poly_prelu")


def test_numbers_of_one_parameter_are_told_apart():
    assert {f"c[{i}]" for i in range(4)} <= set(printed("la").split())


def test_coefficients_of_experts_are_shown_as_their_mean():
    cfg = models.preset("moe-tiny", num_layers=2, embed_dim=8, vocab_size=8)
    cfg = replace(cfg, moe=replace(cfg.moe, coefficients="expert"))
    params = INIT(cfg, jax.random.key(0))
    own = params["layers"][0]["moe"]["activation"]
    own["coeffs"] = own["coeffs"].at[1, 3].add(8.0)  # of one of eight experts
    first, second = report.activation_parameters(cfg, params)
    np.testing.assert_allclose(second["coeffs"] - first["coeffs"], np.ones(4), atol=1e-6)


def test_the_row_of_the_shapes_is_a_standard_normal_one():
    x = report.normal_quantiles(report.ROW)
    assert np.all(np.diff(x) > 0)
    np.testing.assert_allclose(x, -x[::-1], atol=1e-6)
    assert statistics.fmean(x.tolist()) == pytest.approx(0, abs=1e-6)
    assert float(np.mean(x**2)) == pytest.approx(1, abs=2e-3)  # the tails beyond +-3.5 are cut


@pytest.mark.parametrize("activation", ["poly_norm", "poly_norm_glu", "poly_prelu", "swiglu"])
def test_shapes_of_every_kind_of_activation_are_drawn(
    tmp_path: Path, activation: str, monkeypatch: pytest.MonkeyPatch
):
    drawn = {}
    monkeypatch.setattr(plots, "plot_shapes", lambda path, *args, **kw: drawn.update(args=args))
    row = get_activation(activation)
    start = jax.device_get(row.init(jax.random.key(0)))
    report.draw_shapes(tmp_path / "shapes", row, [start, start] if start else [{}, {}], "title")
    x, first, layers = drawn["args"]
    assert x.shape == first.shape == (report.ROW,)
    assert len(layers) == (2 if start else 0)
    for layer in layers:
        np.testing.assert_array_equal(layer, first)


def _curve(monkeypatch: pytest.MonkeyPatch, act: Activation) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn of it at the start."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "plot_shapes", lambda path, *args, **kw: drawn.update(args=args))
    report.draw_shapes(Path("nowhere"), act, [], "title")
    return drawn["args"][:2]


OWN = [
    pc.activation(lambda x, a: a * jnp.tanh(x), {"a": each}, name=f"threes_by_{each.per}")
    for each in (Parameter(1.0, "group", groups=3), Parameter(1.0, "channel", groups=3))
]


@pytest.mark.parametrize("act", [*map(get_activation, ACTIVATIONS), *OWN], ids=lambda act: act.name)
def test_means_over_places_are_parameters_of_the_row_that_shapes_are_drawn_of(act: Activation):
    width = report.row_length(act)
    means = report._over_places(act, jax.device_get(act.init(jax.random.key(0), width)))
    row = jnp.ones((1, width))
    y = jax.eval_shape(act.apply, report._for_row(act, means), *[row] * (1 + act.gated))
    assert y.shape == row.shape


@pytest.mark.parametrize("act", OWN, ids=lambda act: act.name)
def test_shapes_are_drawn_where_groups_do_not_divide_the_usual_row(act, monkeypatch):
    x, y = _curve(monkeypatch, act)
    assert len(x) == 2049
    np.testing.assert_allclose(y, np.tanh(x), rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if get_activation(n).over_rows])
def test_shapes_of_rows_are_those_of_the_page_of_all_curves(name: str, monkeypatch):
    """Where a row is normalised in groups, each is to have numbers of all sizes."""
    act = get_activation(name)
    width, x = report.ROW, report.normal_quantiles(report.ROW)
    shuffled = np.random.default_rng(0).permutation(width)
    row = jnp.asarray(x[shuffled])[None]
    whole = act.apply(
        act.init(jax.random.key(0), width), *[row, jnp.ones_like(row)][: 1 + act.gated]
    )
    wanted = np.asarray(whole)[0][np.argsort(shuffled)]
    _, y = _curve(monkeypatch, act)
    inner = np.abs(x) < 2
    # Random groups of evonorm_s0 differ from each other by chance; sorted ones, by a factor.
    error = np.abs(y - wanted)[inner].mean() / np.abs(wanted)[inner].mean()
    assert error < (0.25 if name == "evonorm_s0" else 0.01), error


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_next_commands_name_an_activation_that_the_run_can_have(name: str, tmp_path: Path):
    reads = get_activation(name).reads
    options: dict[str, Any] = {}
    if {"order", "bits"} & {*reads}:
        options = {"order": 5} if "order" in reads else {"bits": 2}
    config = default_config("tiny")
    for chosen in (ActivationOptions(), ActivationOptions(**options)):
        model = replace(config.model, activation=name, activation_options=chosen)
        shown = report.next_commands(Workdir(tmp_path), replace(config, model=model))
        for other in re.findall(r"--activation (\w+)", shown):
            replace(model, activation=other)
        assert ("--activation" in shown) == (chosen == ActivationOptions())


@pytest.mark.parametrize("depth", [2, 24])
def test_figures_are_written_for_the_screen_and_for_print(tmp_path: Path, depth: int):
    x = report.normal_quantiles(64)
    layers = [x * (layer + 1) for layer in range(depth)]
    plots.plot_shapes(tmp_path / "deep" / "shapes", x, x, layers, title="t", note="n")
    records = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "heldout_loss": 2.5}]
    plots.plot_loss(tmp_path / "loss", records, "t")
    plots.plot_load(tmp_path / "experts", [{"step": 1, "expert_load": [0.5, 1.5]}, *records], "t")
    for name in ("deep/shapes", "loss", "experts"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("tokens", "label"), [(None, "all of it (last: 2.500)"), (4096, "at most 4,096 tokens (last:")]
)
def test_the_figure_says_how_much_was_held_out(tmp_path, monkeypatch, tokens, label):
    labels = []

    @contextlib.contextmanager
    def kept(*args, **options):
        figure, axes = plt.subplots()
        yield (axes,)
        labels.extend(axes.get_legend_handles_labels()[1])
        plt.close(figure)

    monkeypatch.setattr(plots, "panels", kept)
    plots.plot_loss(tmp_path / "loss", [{"step": 2, "heldout_loss": 2.5}], "t", eval_tokens=tokens)
    assert labels[0].startswith(f"held-out, {label}")


def test_an_empty_log_gives_an_empty_figure(tmp_path: Path):
    plots.plot_loss(tmp_path / "loss", [], "t")
    assert (tmp_path / "loss.png").exists()


def test_the_next_commands_can_be_pasted(tmp_path: Path):
    workdir = Workdir(tmp_path / "a folder")
    config = default_config("tiny")
    shown = report.next_commands(workdir, config)
    assert f"generate '{workdir.root}' --prompt 'def '" in shown
    assert "--activation swiglu" in shown
    longer = 2 * config.run.steps
    assert f"pretrain '{workdir.root}' --steps {longer}  # goes on at" in shown
    assert "last learning rate, 0.0005\n" in shown
    assert f"--workdir '{workdir.root}-{longer}' --steps {longer}\n" in shown


def test_a_schedule_that_goes_on_is_not_called_ended(tmp_path: Path):
    config = default_config("tiny")
    config = replace(config, optim=replace(config.optim, decay_steps=2 * config.run.steps))
    assert "goes on at" not in report.next_commands(Workdir(tmp_path), config)
