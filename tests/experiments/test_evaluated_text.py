"""What `experiments.evaluate` measures on a run's own text, by whatever name."""

import json
import math
import os
import shutil
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.evaluate import __main__ as evaluate
from experiments.pretrain import __main__ as pretrain
from experiments.run.folder import Workdir
from experiments.terminal.progress import Display


@pytest.fixture(scope="module")
def little(settings: Path) -> Path:
    """The text that the run was trained on."""
    return Path(yaml.safe_load(settings.read_text())["data"]["source"])


def measured(whole: Path, source: object, out: Path, *words: str) -> dict[str, Any]:
    flags = [str(whole), "--data", str(source), "--json", str(out), *words]
    assert evaluate.main(flags) == 0
    (found,) = json.loads(out.read_text())["results"]
    return found


def test_by_every_name_the_part_that_training_left_out_is_measured(
    whole: Path, little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy, link = tmp_path / "copy.txt", tmp_path / "link.txt"
    shutil.copy(little, copy)
    link.symlink_to(little)
    monkeypatch.chdir(tmp_path)
    names = [little, "./copy.txt", "link.txt", f"{little.parent}/*.txt"]
    found = [measured(whole, name, tmp_path / "n.json") for name in names]
    # Earlier versions have noted files by their SHA-256.
    before = shutil.copytree(whole, tmp_path / "before", ignore=shutil.ignore_patterns(".lock"))
    tree = yaml.safe_load((before / "config.yaml").read_text())
    tree["record"]["data"]["files"] = {"gone": sha256(little.read_bytes()).hexdigest()}
    (before / "config.yaml").write_text(yaml.safe_dump(tree))
    found.append(measured(before, copy, tmp_path / "n.json"))
    left_out = Workdir(whole).record()["data"]["heldout"]
    assert [(one["bytes"], one["documents"]) for one in found] == [
        (left_out["bytes"], left_out["documents"])
    ] * len(found)
    assert len({one["loss"] for one in found}) == 1


@pytest.mark.parametrize(
    ("split", "source", "documents"),
    [("all", "c4/en", 3 + 2), ("all", "a.txt", 2), ("heldout", "c4/en", 2)],
)
def test_of_a_data_set_with_parts_all_is_both_and_of_a_file_the_second_is_all(
    split: Any, source: str, documents: int, monkeypatch: pytest.MonkeyPatch
):
    def store(count: int) -> Any:
        """So many documents of a target and ten bytes each; a batch is a target."""
        return SimpleNamespace(num_targets=count, num_bytes=10 * count, num_documents=count)

    corpus = SimpleNamespace(train=store(3), heldout=store(2), treated="")
    sums = {"nats": 2.0, "targets": 1.0}
    stubs = {
        "make_eval_step": lambda cfg, mesh: lambda params, batch: sums,
        "read_text": lambda *words, **named: corpus,
        "eval_batches": lambda store, **named: range(store.num_targets),
        "put_batch": lambda batch, **named: batch,
        "batch_rows": lambda size, mesh: np.arange(size),
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(evaluate, name, stub)
    model: Any = SimpleNamespace(cfg=SimpleNamespace(context_length=9), params=None)
    config = evaluate.EvaluateConfig(split=split, windows="sliding")
    measure = evaluate.Measure(config, model, None, Display(active=False))
    assert (measure.seq_len, measure.stride) == (9, 4)
    assert measure(source) == {
        "data": source, "documents": documents, "bytes": 10 * documents, "loss": 2.0,
        "bits_per_byte": pytest.approx(0.2 / math.log(2)), "tokens": documents,
    }  # fmt: skip


def test_all_of_a_text_is_measured_where_that_is_asked_for(
    whole: Path, little: Path, tmp_path: Path
):
    other = tmp_path / "other.txt"
    other.write_text("Pack my box with five dozen liquor jugs.\n" * 60)
    for source in (little, other):
        found = measured(whole, source, tmp_path / "n.json", "--split", "all")
        assert found["bytes"] == source.stat().st_size


def test_several_runs_are_measured_one_after_the_other(
    whole: Path, little: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other"
    shutil.copytree(whole, other, ignore=shutil.ignore_patterns(".lock"))
    assert evaluate.main([str(whole), str(other), "--data", str(little), "--json", "-"]) == 0
    shown = capsys.readouterr()
    first, second = json.loads(shown.out)
    assert (first["run"], second["run"]) == (str(whole), str(other))
    assert first["results"] == second["results"]
    assert "experiments.analyze" in shown.err
    assert evaluate.main([str(whole), "nowhere", "--data", str(little)]) == 2
    assert capsys.readouterr().err.startswith("error: 'nowhere' is no folder of a run")


@pytest.mark.parametrize("case", ["more files", "changed", "split otherwise"])
def test_text_of_which_some_was_trained_on_is_refused(
    whole: Path, little: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(".lock"))
    shutil.copy(little, tmp_path / "little.txt")
    (tmp_path / "more.txt").write_text("Other text.\n" * 90)
    config = folder / "config.yaml"
    text, source, words = config.read_text(), str(tmp_path / "little.txt"), "would be held out"
    if case == "more files":
        source, words = str(tmp_path / "*.txt"), "the model was trained on"
    elif case == "changed":
        config.write_text(text.replace(f"source: {little}", f"source: {source}"))
        Path(source).write_text("A line that was not there.\n" + little.read_text())
    else:  # as an earlier version had cut it
        old = yaml.safe_load(text)
        old["record"]["data"]["heldout"] |= {"documents": 1, "bytes": 64_000}
        config.write_text(yaml.safe_dump(old))
    assert evaluate.main([str(folder), "--data", source]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_run_may_evaluate_on_some_of_what_is_held_out(
    run: Any, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path / "w", "--run.eval-tokens", "64") == 0
    some, every = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "w", whole)
    )
    assert [line["loss"] for line in some] == [line["loss"] for line in every]
    held = [
        (a["heldout_loss"], b["heldout_loss"])
        for a, b in zip(some, every, strict=True)
        if "heldout_loss" in a
    ]
    assert len(held) == 2
    assert all(a != b for a, b in held)
    ratios = [
        line["bits_per_byte"] / line["heldout_loss"]
        for line in (*some, *every)
        if "heldout_loss" in line
    ]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-12)
    more = ["--run.eval-tokens", "128", "--steps", "7"]
    assert run(tmp_path / "w", *more) == 2  # "best" would compare losses of other texts
    assert "run.eval_tokens: 64 there, 128 now" in capsys.readouterr().err


def test_held_out_text_is_not_what_is_trained_on(little: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--data", str(little), "--data.heldout", str(little)]
    assert pretrain.main(words) == 2
    assert "all of it would be trained on" in capsys.readouterr().err


@pytest.mark.slow
def test_a_name_that_is_no_utf8_is_trained_on_by_a_glob(run: Any, little: Path, tmp_path: Path):
    shutil.copy(little, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    assert run(tmp_path / "w", "--data", f"{tmp_path}/*.txt", "--steps", "1") == 0
    assert [r"caf\xe9.txt" in name for name in Workdir(tmp_path / "w").record()["data"]["files"]]
