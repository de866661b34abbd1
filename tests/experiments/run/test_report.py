"""Figures, tables and hints at the end of a run."""

import contextlib
import statistics
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from experiments.run import plots, report
from experiments.run.config import default_config
from experiments.run.folder import Workdir
from polycom_jax import models
from polycom_jax.table import ACTIVATIONS, get_activation

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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_means_over_channels_are_parameters_of_the_row_that_shapes_are_drawn_of(name: str):
    act = get_activation(name)
    means = report._over_channels(act, jax.device_get(act.init(jax.random.key(0), report.ROW)))
    row = jnp.ones((1, report.ROW))
    y = jax.eval_shape(act.apply, report._for_row(act, means), *[row] * (1 + act.gated))
    assert y.shape == row.shape


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
