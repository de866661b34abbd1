"""Runs on several texts with weights, from the command line and from YAML, in every program."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run_config

from experiments import replay
from experiments.analyze import __main__ as analyze
from experiments.compare import __main__ as compare
from experiments.evaluate import __main__ as evaluate
from experiments.plan import __main__ as plan
from experiments.pretrain import __main__ as pretrain
from experiments.run.config import default_config
from experiments.run.metrics import read_metrics
from experiments.run.resuming import differences
from experiments.run.step_metrics import Meter
from experiments.tokenize import __main__ as tokenize

COMPARED = ("step", "loss", "grad_norm", "heldout_loss", "heldout_loss/hens", "bits_per_byte")
Run = Callable[..., int]


@pytest.fixture(scope="session")
def texts(settings: Path) -> tuple[str, str]:
    """The little text, and another one."""
    other = settings.parent / "hens.txt"
    other.write_text("".join(f"{n} hens count to {n * n % 19}.\n" for n in range(2_000)))
    return str(settings.parent / "little.txt"), str(other)


@pytest.fixture(scope="session")
def mixed(run: Run, texts: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on both that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("mixed")
    little, hens = texts
    assert run(workdir, "--data", f"{little}=0.7", f"{hens}=0.3") == 0
    return workdir


def numbers(workdir: Path) -> list[dict[str, Any]]:
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k in COMPARED} for record in records]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What a program has said, in one line."""
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def test_flags_and_yaml_name_several_texts_alike(tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text("data: {source: [a.txt=0.7, b.txt=0.3]}")
    by_file, _ = run_config(["--config", str(path)])
    by_flags, _ = run_config(["--data", "a.txt=0.7", "b.txt=0.3"])
    assert by_file.data.source == by_flags.data.source == ("a.txt=0.7", "b.txt=0.3")
    one, _ = run_config(["--config", str(path), "--data", "c.txt"])
    assert one.data.source == "c.txt"


def test_losses_of_each_text_and_of_all_are_logged(mixed: Path):
    last = read_metrics(mixed / "metrics.jsonl")[-1]
    loss = {name: last[f"heldout_loss/{name}"] for name in ("little", "hens")}
    bits = {name: last[f"bits_per_byte/{name}"] for name in ("little", "hens")}
    assert last["heldout_loss"] == pytest.approx(0.7 * loss["little"] + 0.3 * loss["hens"])
    size = 0.7 * loss["little"] / bits["little"] + 0.3 * loss["hens"] / bits["hens"]
    assert last["bits_per_byte"] == pytest.approx(last["heldout_loss"] / size)
    assert loss["little"] != loss["hens"]


def test_the_run_records_texts_and_weights(mixed: Path, texts: tuple[str, str]):
    tree = yaml.safe_load((mixed / "config.yaml").read_text())
    assert tree["data"]["source"] == [f"{texts[0]}=0.7", f"{texts[1]}=0.3"]
    corpora = tree["record"]["data"]["corpora"]
    assert {name: about["weight"] for name, about in corpora.items()} == {
        "little": 0.7,
        "hens": 0.3,
    }
    assert all(about["fingerprint"] for about in corpora.values())


def test_a_stopped_run_goes_on_with_the_same_numbers(
    run: Run, mixed: Path, texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    def dying(meter: Meter, step: int, metrics: Any, push: Any = Meter.push) -> None:
        push(meter, step, metrics)
        if step == 5:
            raise Killed

    little, hens = texts
    words = ("--data", f"{little}=0.7", f"{hens}=0.3")
    monkeypatch.setattr(Meter, "push", dying)
    with pytest.raises(Killed):
        run(tmp_path / "run", *words)
    monkeypatch.undo()
    assert pretrain.main([str(tmp_path / "run")]) == 0
    assert numbers(tmp_path / "run") == numbers(mixed)


@pytest.mark.slow
def test_the_first_line_has_the_epochs_of_each_text(
    run: Run, texts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    little, hens = texts
    assert run(tmp_path / "run", "--data", f"{little}=7", f"{hens}=3", "--run.dry-run") == 0
    said = told(capsys)
    for name, weight in (("little", 0.7), ("hens", 0.3)):
        found = re.search(rf"{name} {weight} of the windows, ([\d.e+-]+) epochs, ([\d,]+) tr", said)
        assert found, said
        windows = (int(found[2].replace(",", "")) - 1) // 32
        assert float(found[1]) == pytest.approx(6 * 8 * weight / windows, rel=5e-3)
    assert f"{little}=7" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [((0.6, 0.4), "data.source: .*=0.7.* there, .*=0.6.* now"), (None, "data.source: .* there")],
)
def test_other_weights_or_texts_are_refused(
    run: Run,
    mixed: Path,
    texts: tuple[str, str],
    weights: tuple[float, float] | None,
    reason: str,
    capsys: pytest.CaptureFixture[str],
):
    little, hens = texts
    words = [f"{little}={weights[0]}", f"{hens}={weights[1]}"] if weights else [little]
    assert run(mixed, "--data", *words, "--steps", "8") == 2
    assert re.search(reason, told(capsys))


@pytest.mark.parametrize(
    ("new", "may"),
    [
        (("/new/a.txt=1", "/new/b.txt=3"), True),
        (("/gone/a.txt=2", "/new/b.txt=6"), True),
        (("/new/a.txt=1", "/new/b.txt=4"), False),
        (("/new/b.txt=3", "/new/a.txt=1"), False),
        (("/new/a.txt=1", "c4/en=3"), False),
        (("/new/a.txt=1", "/new/b.txt=3", "/new/c.txt=1"), False),
        ("/new/a.txt", False),
    ],
)
def test_of_several_texts_each_may_lie_elsewhere_with_its_weight(new: Any, may: bool):
    config = default_config("tiny")
    before, now = (
        replace(config, data=replace(config.data, source=source))
        for source in (("/gone/a.txt=1", "/gone/b.txt=3"), new)
    )
    assert bool(differences(now, before)) is not may


@pytest.mark.slow
def test_a_changed_text_is_refused_with_its_name(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = []
    for name, share in (("one", 1), ("two", 3)):
        lines = "".join(f"{name} {n} and {n % 7}.\n" for n in range(2_000))
        (tmp_path / f"{name}.txt").write_text(lines)
        words.append(f"{tmp_path}/{name}.txt={share}")
    assert run(tmp_path / "run", "--data", *words, "--steps", "2") == 0
    with (tmp_path / "two.txt").open("a") as file:
        file.write("One line more.\n")
    assert run(tmp_path / "run", "--data", *words, "--steps", "4") == 2
    said = told(capsys)
    assert "trained on other data" in said
    assert "data.corpora.two.files" in said
    assert "data.corpora.one" not in said


@pytest.mark.slow
def test_a_batch_of_several_texts_can_be_repeated(mixed: Path, capsys: pytest.CaptureFixture[str]):
    assert replay.main([str(mixed), "--step", "2"]) == 0
    out = told(capsys)
    assert "hens count" in out
    assert "quick" in out or "brown" in out


@pytest.mark.slow
def test_one_of_the_texts_is_measured_where_training_left_it_out(
    mixed: Path, texts: tuple[str, str], capsys: pytest.CaptureFixture[str]
):
    assert evaluate.main([str(mixed), "--data", *texts]) == 0
    out = capsys.readouterr().out
    last = read_metrics(mixed / "metrics.jsonl")[-1]
    for name in ("little", "hens"):
        assert f"{last[f'heldout_loss/{name}']:.4f}" in out


def test_a_program_that_takes_one_text_says_so(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--data", "a.txt=1", "b.txt=1"]
    assert compare.main(["--quick", "--out", str(tmp_path / "c"), *words]) == 2
    assert "a study trains on one text" in told(capsys)
    assert analyze.main([str(mixed), "--out", str(tmp_path / "a")]) == 2
    said = told(capsys)
    assert "trained on several texts" in said
    assert "--data" in said


def test_a_plan_takes_several_texts(capsys: pytest.CaptureFixture[str]):
    assert plan.main(["--data", "a.txt=1", "b.txt=nan"]) == 2
    assert "weight of 'b.txt' is nan" in told(capsys)


@pytest.mark.slow
def test_texts_are_tokenised_each_by_itself(
    texts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--data", f"{texts[0]}=1", f"{texts[1]}=1", "--cache-dir", str(tmp_path / "c")]
    assert tokenize.main([*words, "--vocab-size", "300", "--workers", "1"]) == 0
    said = told(capsys)
    assert len(list((tmp_path / "c" / "tokens").glob("*/index.json"))) == 2
    assert "Training a BPE of 300 tokens" in said
