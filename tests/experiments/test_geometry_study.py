"""The study of representational geometry: its tasks, its networks, what it finds, what it says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.geometry.__main__ import GeometryConfig, main
from experiments.geometry.network import Network
from experiments.geometry.report import sections
from experiments.geometry.study import (
    AT_LOSS,
    MEASURES,
    Plan,
    _alignments,
    _classified,
    ccgp_ceiling,
    measure,
)
from experiments.geometry.summary import comparable, differences, findings, means
from experiments.geometry.tasks import Task, kernel_tasks, pattern_tasks, xor_tasks
from experiments.geometry.train import RECIPES, Group
from polycom_jax._errors import InputError
from polycom_jax.analysis.geometry import centred_kernel, kernel_alignment
from polycom_jax.table import get_activation

ALL = [*pattern_tasks(), *xor_tasks((0.0, 0.5), (0.0, 0.3)), *kernel_tasks()]
SMALL = [
    "--families",
    "xor",
    "--separabilities",
    "0",
    "0.5",
    "--noises",
    "0",
    "--seeds",
    "2",
    "--width",
    "16",
    "--steps",
    "20",
]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_points_of_a_task_are_balanced_and_of_one_seed_alone(task: Task):
    points, again = task.points(3), task.points(3)
    np.testing.assert_array_equal(points.inputs, again.inputs)
    assert (task.points(4).inputs != points.inputs).any()
    columns = np.concatenate([points.labels, points.others], axis=1)
    count = len(points.inputs)
    assert columns.shape == (count, count - 1)
    np.testing.assert_array_equal(columns.T @ columns, count * np.eye(count - 1))
    assert not columns.sum(axis=0).any()
    assert points.labels.shape[1] == task.labels


def test_xor_is_separable_by_its_third_direction_alone():
    for separability in (0.0, 0.5, 1.0):
        (task,) = xor_tasks((separability,), (0.0,))
        points = task.points(0)
        kernel, labels = centred_kernel(points.inputs), centred_kernel(points.labels)
        expected = separability**2 / math.sqrt(2 + separability**4)
        assert kernel_alignment(kernel, labels) == pytest.approx(expected, abs=1e-12)
        gap = points.labels[:, 0] @ points.inputs / len(points.inputs)
        assert np.linalg.norm(gap) == pytest.approx(separability, abs=1e-12)


def test_kernels_have_the_alignment_and_rank_that_tasks_name():
    for task in kernel_tasks():
        words = task.name.replace(",", "").split()
        k, signal, rank = int(words[1]), float(words[4]), int(words[6])
        points = task.points(0)
        kernel, labels = centred_kernel(points.inputs), centred_kernel(points.labels)
        expected = math.sqrt(k * signal / (len(kernel) - 1))
        assert kernel_alignment(kernel, labels) == pytest.approx(expected, abs=1e-12)
        values = np.linalg.eigvalsh(kernel)
        assert np.sum(values > 1e-9 * values[-1]) == rank + (k if signal else 0)
        assert np.mean(points.inputs**2) == pytest.approx(1.0)
        if signal == 1 and rank == len(kernel) - 1 - k:  # as far apart as points can be
            np.testing.assert_allclose(values[1:], values[-1], rtol=1e-9)


def test_the_turn_is_zero_at_the_inputs_kernel_and_one_at_the_labels():
    for task in (*xor_tasks((0.5, 1.0), (0.0,)), *kernel_tasks()):
        points = task.points(0)
        assert _alignments(points, 3 * points.inputs)["turn"] == pytest.approx(0.0, abs=1e-6)
        assert _alignments(points, points.labels)["turn"] == pytest.approx(1.0, abs=1e-6)


def test_a_fixed_readout_has_as_many_units_of_each_sign_and_label():
    net = Network(get_activation("relu"), dim=5, labels=2, width=8, readout="fixed")
    params = net.init(jax.random.key(0))
    assert "v" not in params
    hidden = net.hidden(params, jnp.ones((1, 5)))
    scale = 1 / math.sqrt(8)
    v = scale * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]] * 2)
    np.testing.assert_allclose(net.logits(params, jnp.ones((1, 5))), hidden @ v, rtol=1e-6)


def test_activations_start_from_equal_weights():
    starts = [
        Network(get_activation(name), 5, 1, 8, "trained").init(jax.random.key(1))
        for name in ("tanh", "poly_norm", "swiglu")
    ]
    for name in ("w", "b"):
        for other in starts[1:]:
            np.testing.assert_array_equal(starts[0]["up"][name], other["up"][name])
    wide = Network(get_activation("tanh"), 30, 1, 50, "trained").init(jax.random.key(1))
    for weights, fan_in in ((wide["up"]["w"], 30), (wide["v"], 50)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.8 * bound < np.abs(weights).max() <= bound
    assert np.std(wide["up"]["b"]) == pytest.approx(1 / math.sqrt(30), rel=0.4)


def test_training_of_many_is_training_of_one():
    recipe = replace(RECIPES["xor"], steps=30)
    tasks = xor_tasks((0.0, 0.5), (0.3,))
    net = Network(get_activation("poly_relu"), 80, 1, 16, "fixed")
    many = Group(net, recipe, tasks, (0, 1)).train(lambda share: None)[1][-1]
    one = Group(net, recipe, tasks[1:], (1,)).train(lambda share: None)[1][-1]
    np.testing.assert_allclose(many.hidden[1, 1], one.hidden[0, 0], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(many.loss[1, 1], one.loss[0, 0], rtol=1e-4)


def test_the_published_finding_comes_out_at_small_scale():
    """Tanh's hidden layers follow the labels and ReLU's the inputs, on separable tasks."""
    tasks = [*pattern_tasks()[:1], *xor_tasks((0.5, 1.0), (0.0,))]
    acts = {name: get_activation(name) for name in ("tanh", "relu")}
    plan = Plan(acts, tasks, seeds=3, width=64, steps=400)
    measured = {name: {} for name in acts}
    for name, group in plan.groups():
        measured[name] |= measure(group, lambda share: None)
    found = findings(measured, tasks)
    assert [each.kind for each in found] == ["patterns", "separable XOR"]
    for each in found:
        assert each.labels is not None
        assert each.inputs is not None
        assert each.labels.mean > 0.05
        assert each.inputs.mean < -0.05
        assert each.nearer == each.tasks
    for kind in means(measured, tasks).values():
        assert kind["tanh"]["turn"].mean > 0.8 > kind["relu"]["turn"].mean
        assert kind["tanh"]["accuracy"].mean > 0.95


def test_a_width_that_an_activation_cannot_have_is_refused_before_training():
    acts = {name: get_activation(name) for name in ("relu", "gdn")}
    with pytest.raises(InputError, match="gdn: groups=8 must divide the hidden width 12"):
        Plan(acts, kernel_tasks(), 2, 12, 1).groups()


def test_a_network_that_is_not_finite_has_no_numbers():
    (task,) = xor_tasks((0.5,), (0.0,))
    recipe = replace(RECIPES["xor"], learning_rate=1e30, steps=12)
    net = Network(get_activation("relu2"), 80, 1, 16, "fixed")
    found = measure(Group(net, recipe, [task], (0, 1)), lambda share: None)
    assert np.isnan(found[task.name]["turn"]).all()


def test_a_difference_without_a_number_stays_in_holm_s_family():
    task = ALL[0]
    turns = {"relu": [0.1, 0.2, 0.3], "tanh": [0.5, 0.7, 0.9], "gelu": [0.1, math.nan, 0.2]}
    measured = {act: {task.name: {"turn": own}} for act, own in turns.items()}
    tanh, gelu = differences(measured, [task], [("tanh", "relu"), ("gelu", "relu")])
    assert gelu.found is None
    assert tanh.adjusted == pytest.approx(2 * 0.25)
    # A seed that fails in one of several tasks has no mean over them.
    other = ALL[1]
    for own in measured.values():
        own[other.name] = {"turn": [0.5, 0.6, 0.4]}
    assert differences(measured, [task, other], [("gelu", "relu")])[0].found is None


def test_the_published_finding_holds_where_intervals_leave_zero_out():
    tasks = xor_tasks((0.5, 1.0, 2.0), (0.0,))
    base, spread = np.array([0.3, 0.4, 0.35]), np.array([0.01, 0.0, -0.01])
    means = (0.2, -0.2, -0.01)

    def measured_at(labels: np.ndarray) -> dict[str, dict[str, dict[str, list[float]]]]:
        relu = {name: base.tolist() for name in ("turn", "labels", "inputs")}
        return {
            "relu": {task.name: relu for task in tasks},
            "tanh": {
                task.name: {
                    "turn": (base + mean + spread).tolist(),
                    "labels": (base + labels).tolist(),
                    "inputs": (base - 0.1 + spread).tolist(),
                }
                for task, mean in zip(tasks, means, strict=True)
            },
        }

    # Three seeds: t is 4.3, the error 0.0058, so that 0.01 is within the interval and 0.1 is not.
    (found,) = findings(measured_at(0.1 + spread), tasks)
    assert (found.nearer, found.farther, found.tasks, found.holds) == (1, 1, 3, True)
    (found,) = findings(measured_at(0.01 + spread), tasks)
    assert not found.holds


def numbers(turn: float, *, at_loss: float | None = None) -> dict[str, list[float]]:
    found = {name: [turn, turn + 0.02] for name in MEASURES}
    return found | {AT_LOSS: [turn, turn if at_loss is None else at_loss]}


def test_at_equal_loss_activations_are_compared_where_all_of_them_came_to_it():
    tasks = xor_tasks((0.0, 0.5, 1.0), (0.0,))
    xor, half, full = (task.name for task in tasks)
    measured = {
        "tanh": {xor: numbers(0.1, at_loss=math.nan), half: numbers(0.8), full: numbers(0.6)},
        "relu": {xor: numbers(0.3), half: numbers(0.4, at_loss=math.nan), full: numbers(0.5)},
    }
    assert comparable(measured, tasks) == {"XOR": [xor], "separable XOR": [full]}
    found = means(measured, tasks)
    for act, turn in (("tanh", 0.6), ("relu", 0.5)):
        assert found["separable XOR"][act][AT_LOSS].mean == pytest.approx(turn)
        assert found["separable XOR"][act][AT_LOSS].missing == 0
    assert found["separable XOR"]["tanh"]["turn"].mean == pytest.approx(0.71)  # of both tasks
    shown = sections(measured, tasks, [], found, [])[1]
    assert [row[1:] for row in shown.rows if "first look" in row[1]] == [
        ("first look with loss of at most 0.1, 1 of 1 tasks", "none (-1)", "0.30 ± 0.00"),
        ("first look with loss of at most 0.1, 1 of 2 tasks", "0.60 ± 0.00", "0.50 ± 0.00"),
    ]
    assert f"Left out: {half} (by relu)." in shown.notes[0]


def test_ccgp_has_a_ceiling_where_the_product_of_two_labels_splits_conditions():
    (own, bits), five = pattern_tasks(), kernel_tasks()[-1]
    for task, expected in ((own, 1.0), (bits, 0.75), (five, 0.6), (kernel_tasks()[0], 1.0)):
        assert ccgp_ceiling(task.points(0)) == pytest.approx(expected)
    # A layer that holds nothing but labels is at the ceiling.
    for task in (own, bits, five):
        points = task.points(0)
        hidden = points.labels * 2.0 ** -np.arange(task.labels)
        found = _classified(points, np.stack([hidden, hidden]))
        assert found["ccgp"] == pytest.approx(ccgp_ceiling(points))
    text = " ".join(sections({}, [own, bits], [], {"patterns": {}}, [])[0].notes)
    assert "a ceiling of 0.875 in patterns." in text


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("geometry")
    assert main([*SMALL, "--activations", "tanh", "relu", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_the_program_writes_report_numbers_and_figures(
    studied: Path, capsys: pytest.CaptureFixture[str]
):
    text = (studied / "report.md").read_text()
    assert "**The published finding" in text
    assert "plots/plane.png" in text
    record = json.loads((studied / "results.json").read_text())
    assert {"command", "jax", "processor", "commit"} <= record["about"].keys()
    assert record["seeds"].keys() == {"tanh", "relu"}
    for own in record["seeds"].values():
        assert own.keys() == {"xor 0, noise 0", "xor 0.5, noise 0"}
        for numbers in own.values():
            assert numbers.keys() == MEASURES.keys()
            assert {len(values) for values in numbers.values()} == {2}
    assert (studied / "plots" / "separability.pdf").stat().st_size > 1000
    command = ["--activations", "tanh", "relu", "softplus", "--out", str(studied)]
    before = {path: path.read_bytes() for path in (studied / "cells").iterdir()}
    assert main([*SMALL, *command]) == 0  # another activation: only it is trained
    assert all(path.read_bytes() == old for path, old in before.items())
    assert len([*(studied / "cells").iterdir()]) == len(before) + 1
    shown = capsys.readouterr().out
    assert "Next:\n  python -m experiments.geometry" in shown
    assert "Turns beside those of tanh and ReLU" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--activations", "tahn"], "tanh"),
        (["--activations", "relu", "relu"], "each once"),
        (["--families", "xro"], "xor"),
        (["--seeds", "1"], "seeds=1 must be at least 2"),
        (["--width", "30"], "multiple of 4"),
        (["--separabilities", "-1"], "at least 0"),
        (["--noises", "inf"], "at most 10"),
        (["--steps", "0"], "steps=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_of_other_settings_is_refused(studied: Path, capsys: pytest.CaptureFixture[str]):
    words = [word if word != "20" else "21" for word in SMALL]
    assert main([*words, "--out", str(studied)]) == 2
    assert "steps: 20 there, 21 now" in capsys.readouterr().err


def test_the_default_study_names_its_tasks_once():
    names = [task.name for task in GeometryConfig().tasks()]
    assert len(names) == len(set(names)) == 24
