"""The study of image classification: its data, its training, its folder, what it says."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.rate_search import FIRST_SEED
from experiments.vision import __main__ as vision
from experiments.vision import study
from experiments.vision.__main__ import main
from experiments.vision.images import ImageSet, Part, divided, load
from experiments.vision.resnet import ResNetConfig
from experiments.vision.study import Cell, Plan, settings_of
from experiments.vision.summary import differences, remarks
from experiments.vision.train import RecipeConfig, Run, Trainer, changed
from experiments.vision.vit import Vit, VitConfig
from polycom_jax import ACTIVATIONS, InputError
from polycom_jax.table import get_activation

SIZES = (ResNetConfig(1, 8), VitConfig(patch_size=2, layers=1, embed_dim=12, heads=2))
ROOM = (ResNetConfig(1, 64), VitConfig(patch_size=2, layers=1, embed_dim=48, heads=2))
"""Sizes that every row of the table can have."""
RECIPE = RecipeConfig(epochs=10, batch_size=16)


def part(count: int, seed: int) -> Part:
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    images = rng.integers(0, 60, (count, 4, 4, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    return Part(images, labels)


IMAGES = ImageSet("two halves", 2, part(70, 0), part(20, 1), part(20, 2))


def plan(*names: str, models: tuple[str, ...] = ("vit",), seeds: int = 2) -> Plan:
    acts = {name: get_activation(name) for name in names}
    return Plan(models, acts, IMAGES, SIZES, RECIPE, (1e-3, 3e-3, 1e-2), 1, seeds)


@pytest.mark.parametrize(
    ("model", "flag"), [("preact-resnet", "--resnet.width"), ("vit", "--vit.embed-dim")]
)
def test_a_size_that_an_activation_cannot_have_is_refused_before_training(model: str, flag: str):
    with pytest.raises(InputError, match=f"{model}: evonorm_s0: groups=64 .* another {flag}"):
        plan("relu", "evonorm_s0", models=(model,)).trainers()
    room = replace(plan(*ACTIVATIONS, models=("resnet", "vit")), sizes=ROOM)
    assert {name for _, name, _ in room.trainers()} == {*ACTIVATIONS}


def run(seed: int, rate: float, error: float, loss: float) -> Run:
    curve = (1.0, loss)
    return Run(seed, rate, curve, curve, (0.5, 1 - error), loss, 1 - error)


def cell(model: str, act: str, errors: list[float]) -> Cell:
    """Rates 1, 2 and 3 were tried, and 2 is best; a NaN is a failed run."""
    tried = [run(FIRST_SEED, rate, 0.1, abs(rate - 2) + 1) for rate in (1.0, 2.0, 3.0)]
    own = [run(seed, 2.0, error, 3 * error) for seed, error in enumerate(errors)]
    return Cell(model, act, 100, [*tried, run(0, 1.0, 0.9, 9.0), *own])


def test_missing_parts_are_drawn_from_the_training_images_always_the_same():
    whole = part(100, 0)
    found, again = divided({"train": whole}, "x"), divided({"train": whole}, "x")
    assert [len(found[name].labels) for name in ("train", "validation", "test")] == [60, 20, 20]
    rows = np.concatenate([found[name].images for name in found]).reshape(100, -1)
    assert len(np.unique(rows, axis=0)) == len(np.unique(whole.images.reshape(100, -1), axis=0))
    np.testing.assert_array_equal(found["test"].images, again["test"].images)
    other = divided({"train": whole, "test": part(7, 1)}, "x")
    assert [len(other[name].labels) for name in ("train", "validation", "test")] == [80, 20, 7]


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="no images are left for the part"):
        divided({"train": part(3, 0)}, "x")


def test_the_digits_come_through_a_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra vision)")
    monkeypatch.setenv("POLYCOM_CACHE", str(tmp_path))
    said: list[str] = []
    images = load("digits", said.append)
    parts = (images.train, images.validation, images.test)
    assert [len(each.labels) for each in parts] == [1079, 359, 359]
    assert (images.name, images.shape, images.classes) == ("digits/1.0.0", (8, 8, 1), 10)
    assert sum(int(each.images.sum()) for each in parts) == 561718
    assert len(said) == 1
    folder = str(tmp_path / "tfds" / "digits" / "1.0.0")  # prepared, it is a folder of TFDS
    again = load(folder, said.append)
    np.testing.assert_array_equal(again.test.images, images.test.images)
    assert len(said) == 1


def test_images_are_moved_and_mirrored():
    image = np.zeros((1, 3, 4, 1), np.uint8)
    image[0, 1, 1] = 9
    many = jnp.asarray(np.repeat(image, 64, axis=0))
    key = jax.random.key(0)
    np.testing.assert_array_equal(changed(many, key, 0, flip=False), many)
    moved = np.asarray(changed(many, key, 1, flip=False))
    assert {tuple(place[1:3]) for place in np.argwhere(moved == 9)} == {
        (i, j) for i in (0, 1, 2) for j in (0, 1, 2)
    }
    mirrored = np.asarray(changed(many, key, 0, flip=True))
    assert {tuple(place[1:3]) for place in np.argwhere(mirrored == 9)} == {(1, 1), (1, 2)}


def test_training_learns_repeats_itself_and_may_fail():
    trainer = Trainer(Vit(get_activation("relu"), 2, (4, 4, 1), SIZES[1]), IMAGES, RECIPE)
    shares: list[float] = []
    one = trainer.run(0, 3e-2, shares.append)
    assert shares == pytest.approx([0.1 * i for i in range(1, 11)])
    assert one.train_loss[-1] < 0.5 * one.train_loss[0]
    assert one.test_accuracy > 0.9
    assert trainer.run(0, 3e-2, shares.append) == one
    assert trainer.run(1, 3e-2, shares.append).train_loss != one.train_loss
    failed = trainer.run(0, 1e30, shares.append)
    assert failed.failed
    assert failed.score == math.inf


class Fake:
    """In place of a trainer: the rate 0.003 is best."""

    parameters = 5

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def run(self, seed: int, rate: float, tell: object) -> Run:
        self.asked.append((seed, rate))
        return run(seed, rate, 0.1, abs(math.log(rate / 3e-3)) + 0.1)


def test_runs_that_are_finished_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, fake = tmp_path / "cell.json", Fake()
    shares: list[float] = []

    def fill(seeds: int) -> Cell:
        found = Cell.read(path) if path.exists() else Cell("vit", "relu", 5)
        own = plan("relu", seeds=seeds)
        own.fill(found, fake, path, lambda share, doing: shares.append(share))  # pyright: ignore
        return found

    monkeypatch.setattr(study, "commit", lambda: "earlier")
    first = fill(2)
    monkeypatch.setattr(study, "commit", lambda: "later")
    assert fake.asked == [
        *((FIRST_SEED, rate) for rate in (1e-3, 3e-3, 1e-2)),
        (0, 3e-3),
        (1, 3e-3),
    ]
    assert shares == sorted(shares)
    assert [each.seed for each in fill(4).results()] == [0, 1, 2, 3]
    assert len(fake.asked) == 7
    assert Cell.read(path).runs[:5] == first.runs
    assert [each.commit for each in Cell.read(path).runs] == ["earlier"] * 5 + ["later"] * 2


def test_the_rate_that_is_trained_is_the_one_that_is_reported(tmp_path: Path):
    """With more seeds of the search than before, and rates of an earlier search."""
    errors = {0.0001: (9.0, 9.0), 0.001: (1.0, 9.0), 0.003: (2.0, 2.0), 0.01: (3.0, 3.0)}

    class Told(Fake):
        def run(self, seed: int, rate: float, tell: object) -> Run:
            self.asked.append((seed, rate))
            at = errors.get(rate, (9.0, 9.0))[seed % FIRST_SEED] if seed >= FIRST_SEED else 0.5
            return run(seed, rate, 0.1, at)

    def fill(rates: tuple[float, ...], search_seeds: int) -> None:
        own = replace(plan("relu"), rates=rates, search_seeds=search_seeds)
        own.fill(found, Told(), tmp_path / "cell.json", lambda share, doing: None)  # pyright: ignore

    found = Cell("vit", "relu", 5)
    fill((0.001, 0.003, 0.01), 1)
    assert found.searched.best == 0.001
    fill((0.003, 0.01, 0.03), 2)
    assert found.searched.best == 0.003
    assert found.search_seeds == {FIRST_SEED, FIRST_SEED + 1}
    assert [each.seed for each in found.results()] == [0, 1]
    fill((0.0001, 0.01, 0.03), 1)
    assert found.search_seeds == {FIRST_SEED, FIRST_SEED + 1}
    assert found.searched.best == 0.003
    assert [each.rate for each in found.results()] == [0.003, 0.003]


def test_differences_are_of_equal_seeds_at_the_chosen_rates():
    cells = [cell("vit", "relu", [0.10, 0.12, 0.14]), cell("vit", "silu", [0.07, 0.10, 0.11])]
    assert cells[0].searched.best == 2.0
    (found,) = differences(cells, "relu", "error")
    assert found.found is not None
    assert found.found.mean == pytest.approx(-100 * 0.08 / 3)
    assert found.adjusted == pytest.approx(0.25)
    assert found.verdict == "lower, not after Holm"
    said = " ".join(remarks(cells, [found], "relu"))
    assert "Fewer errors than relu, by an interval: silu (vit)" in said
    assert "3 seeds give no p below 0.25" in said


def test_errors_are_counts_and_tie_in_the_sign_flip_test():
    # Of 359 images, with accuracies in float32 as runs have them.
    wrong = {"relu": [10, 13, 7, 8, 8, 11], "silu": [3, 12, 3, 7, 6, 13]}
    cells = [
        cell("vit", name, [1 - float(np.float32(1 - n / 359)) for n in own])
        for name, own in wrong.items()
    ]
    (found,) = differences(cells, "relu", "error")
    assert found.found is not None
    d = np.array(wrong["silu"]) - np.array(wrong["relu"])
    patterns = np.array(list(itertools.product((1, -1), repeat=6)))
    assert found.found.p == pytest.approx((np.abs(patterns @ d) >= abs(d.sum())).mean())


def test_holm_s_family_is_what_was_planned():
    errors = {"relu": [0.10, 0.12, 0.14], "silu": [0.07, 0.10, 0.11], "relu2": [0.1, math.nan, 0.1]}
    cells = [cell("vit", name, own) for name, own in errors.items()]
    silu, relu2 = differences(cells, "relu", "error")
    assert relu2.found is None
    assert silu.adjusted == pytest.approx(2 * 0.25)


def test_what_no_p_can_reach_is_said_by_the_most_seeds():
    errors = {"relu": [0.1 + 0.01 * n for n in range(9)], "silu": [0.01 * n for n in range(9)]}
    cells = [cell("vit", name, own) for name, own in errors.items()]
    cells.append(cell("vit", "gelu", [0.1, 0.2, 0.3]))
    said = " ".join(remarks(cells, differences(cells, "relu", "error"), "relu"))
    assert "can be significant" not in said


def test_where_nothing_could_be_compared_no_difference_is_said_to_be_missing():
    cells = [cell("vit", "relu", [0.1, 0.2]), cell("vit", "relu2", [math.nan, math.nan])]
    first, *_ = remarks(cells, differences(cells, "relu", "error"), "relu")
    assert first == "**Nothing could be compared.**"


def test_a_failed_run_is_counted_and_not_compared():
    cells = [cell("vit", "relu", [0.1, 0.2]), cell("vit", "relu2", [0.1, math.nan])]
    (found,) = differences(cells, "relu", "loss")
    assert found.verdict == "not comparable"
    assert any("vit, relu2 (1 of 2)" in line for line in remarks(cells, [found], "relu"))


def test_a_folder_s_report_is_made_of_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = {"relu": [0.1, 0.2, 0.3], "poly_norm": [0.05, 0.1, 0.2], "relu2": [0.1, math.nan, 0.1]}
    for name, errors in names.items():
        cell("vit", name, errors).write(tmp_path / "cells" / f"vit-{name}.json")
    about = {"command": "python -m experiments.vision", "reference": "relu"}
    (tmp_path / "about.json").write_text(json.dumps(about))
    (tmp_path / "settings.json").write_text(json.dumps(settings_of(plan("relu"))))
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "poly_norm - relu | -8.33 [" in text
    assert "two halves" in text
    assert "plots/differences.png" in text
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["cells"][0]["search"]["best"] == 2.0
    assert record["about"]["reference"] == "relu"
    assert (tmp_path / "plots" / "curves.pdf").stat().st_size > 1000
    (tmp_path / "cells" / "vit-relu.json").write_text("[]")
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 2
    assert "vit-relu.json is no file of a study's runs" in capsys.readouterr().err


def test_gated_activations_go_with_models_that_take_them():
    both = plan("relu", "swiglu", models=("resnet", "vit")).trainers()
    assert [each[:2] for each in both] == [("resnet", "relu"), ("vit", "relu"), ("vit", "swiglu")]
    with pytest.raises(InputError, match="--activations swiglu: gated"):
        plan("relu", "swiglu", models=("resnet",)).trainers()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--activations", "relu", "gleu"], "gelu"),
        (["--activations", "gelu", "silu"], "Unknown reference among --activations 'relu'"),
        (["--models", "resent"], "resnet"),
        (["--seeds", "1"], "seeds=1 must be at least 2"),
        (["--learning-rates", "0.1", "0.01", "0.2"], "ascending"),
        (["--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["report", "nowhere"], "holds no finished runs"),
        (["--data", "mnits"], "mnist"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = [] if words[0] == "report" else ["--out", str(tmp_path / "out")]
    assert main([*words, *out]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_program_trains_compares_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fake, out = Fake(), tmp_path / "out"
    monkeypatch.setattr(vision, "load", lambda name, report: IMAGES)
    monkeypatch.setattr(vision, "cache_compiled", lambda folder: None)
    monkeypatch.setattr(vision.figures, "draw_all", lambda *words: [])
    monkeypatch.setattr(Trainer, "run", lambda self, *words: fake.run(*words))
    words = ["--models", "preact-resnet", "vit", "--activations", "relu", "poly_norm", "swiglu"]
    words += ["--seeds", "2", "--out", str(out)]
    assert main([*words, "--json", str(tmp_path / "numbers.json")]) == 0
    shown = capsys.readouterr().out
    assert "Next:\n  python -m experiments.vision" in shown
    assert "--seeds 4" in shown
    cells = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    assert len(cells) == 5
    assert len(fake.asked) == 5 * (3 + 2)
    record = json.loads((tmp_path / "numbers.json").read_text())
    assert record == json.loads((out / "results.json").read_text())
    assert [each["model"] for each in record["differences"]] == ["preact-resnet", "vit", "vit"] * 2
    assert main(words) == 0
    assert len(fake.asked) == 25
    assert all((out / "cells" / name).read_bytes() == old for name, old in cells.items())
    before = (out / "report.md").read_text()
    assert main(["report", str(out)]) == 0
    assert (out / "report.md").read_text() == before
    assert main([*words, "--epochs", "3"]) == 2
    assert "recipe" in capsys.readouterr().err
