"""Two processes in one folder of results: neither ends by the other, nor loses what it has done."""

import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from scaling_folders import study
from test_sobolev_coordinates_study import a_run
from test_vision_study import run

from experiments.analyze import along as following
from experiments.compare import __main__ as compare
from experiments.compare import comparing
from experiments.compare.across import leaderboard, scaling, transfer
from experiments.run import lock
from experiments.run.files import atomic
from experiments.run.folder import Workdir
from experiments.run.settings import check_settings
from experiments.sobolev import __main__ as sobolev
from experiments.sobolev import train as fits
from experiments.sobolev.coordinates import study as coordinates
from experiments.sobolev.coordinates.options import CoordinatesOptions
from experiments.sobolev.store import Store
from experiments.terminal.figures import panels
from experiments.vision import study as vision
from polycom_jax import InputError, storage


def test_two_may_write_the_same_file_at_once(tmp_path: Path):
    path = tmp_path / "new" / "report.md"
    with atomic(path) as one:
        one.write_text("begun")
        with atomic(path) as other:
            other.write_text("the second")
        assert path.read_text() == "the second"
        assert one.read_text() == "begun"
    assert path.read_text() == "begun"
    assert [found.name for found in path.parent.iterdir()] == ["report.md"]


def test_two_that_write_files_of_one_stem_do_not_take_each_other_s(tmp_path: Path):
    with atomic(tmp_path / "scaling.md") as text, atomic(tmp_path / "scaling.json") as numbers:
        text.write_text("text")
        numbers.write_text("{}")
    assert (tmp_path / "scaling.md").read_text() == "text"
    assert (tmp_path / "scaling.json").read_text() == "{}"


def test_a_file_is_written_where_another_takes_the_new_folder_away_that_it_has_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Path.mkdir

    def meanwhile(folder: Path, **options: bool) -> None:
        monkeypatch.setattr(Path, "mkdir", real)
        real(folder, **options)
        folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", meanwhile)
    with atomic(tmp_path / "new" / "report.md") as file:
        file.write_text("all")
    assert (tmp_path / "new" / "report.md").read_text() == "all"


def test_a_write_that_fails_leaves_nothing_beside(tmp_path: Path):
    with contextlib.suppress(ZeroDivisionError), atomic(tmp_path / "a") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_of_two_that_begin_with_other_settings_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "is_file", lambda path: False)  # both have looked already
    words: Any = {"holds": "other runs", "advice": "Go elsewhere."}
    check_settings(tmp_path / "settings.json", {"steps": 1}, **words)
    check_settings(tmp_path / "settings.json", {"steps": 1}, **words)
    with pytest.raises(InputError, match="steps: 1 there, 2 now"):
        check_settings(tmp_path / "settings.json", {"steps": 2}, **words)


def test_runs_of_a_cell_of_images_by_two_are_all_kept(tmp_path: Path):
    one, other = (vision.Cell("vit", "relu", 5) for _ in range(2))
    for cell, seeds in ((one, (0, 1)), (other, (1, 2))):
        for seed in seeds:
            cell.runs.append(run(seed, 0.1, 0.5, 0.5))
        cell.write(tmp_path / "cell.json")
    assert [each.seed for each in vision.Cell.read(tmp_path / "cell.json").runs] == [1, 2, 0]
    assert [each.seed for each in other.runs] == [1, 2, 0]


def test_runs_of_a_cell_of_coordinates_by_two_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def trained(target: object, seed: int, rate: float, tell: object) -> tuple[Any, Any]:
        return replace(a_run(seed, 0.5, rate=rate), target="shapes"), {}

    trainers = {"siren": SimpleNamespace(run=trained)}
    monkeypatch.setattr(coordinates.Study, "trainers", trainers)
    monkeypatch.setattr(coordinates.Study, "targets", {"shapes": None})
    options = CoordinatesOptions(arms=("siren",), targets=("shapes",))
    store = Store(tmp_path, "coordinates")
    work = coordinates.Study(options, store, lambda share, doing: None)
    one, other = (coordinates.Cell("shapes", "siren", 5) for _ in range(2))
    for cell, seed in ((one, 1), (other, 1), (other, 2), (one, 3)):
        work._train(cell, "shapes", seed, 0.1, lambda part: None)  # pyright: ignore
    stored = store.cell("shapes-siren")
    assert stored is not None
    assert sorted(each["seed"] for each in stored["runs"]) == [1, 2, 3]
    assert sorted(each.seed for each in one.runs) == [1, 2, 3]


def test_states_of_fits_are_saved_by_one_program_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(fits.Study, "_cell", None)  # a call would fail
    with lock.locked(tmp_path):
        assert sobolev.main(["train", "--quick", "--out", str(tmp_path)]) == 2
    assert "Another run is writing to" in capsys.readouterr().err


def test_the_holder_of_a_folder_removes_what_killed_writers_have_left(tmp_path: Path):
    places = [tmp_path, tmp_path / "plots", tmp_path / "runs" / "relu"]
    old, new = list[Path](), list[Path]()
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        old.append(storage.temporary_name(place / "1.json"))
        new.append(storage.temporary_name(place / "1.json"))
    own = tmp_path / ".notes.tmp"
    for path in (*old, *new, own):
        path.write_text("half")
    for path in (*old, own):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    with Workdir(tmp_path).locked():
        assert not any(path.exists() for path in old)
        assert all(path.exists() for path in (*new, own))  # perhaps a live one's, or a user's


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat of another machine's run that is no more, and a short wait for it."""
    monkeypatch.setattr(lock, "LOST_S", 0.1)
    monkeypatch.setattr(lock, "_POLL_S", 0.02)
    folder.mkdir(exist_ok=True)
    (folder / lock.NAME).write_text(json.dumps({"host": "elsewhere", "process": 7, "beat": 0}))


WAITED = "process 7 on elsewhere has not given the folder back; waiting"


def test_fits_say_what_they_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fitted(study: object, each: object, tell: object) -> None:
        raise InputError("fitted")

    monkeypatch.setattr(fits.Study, "_cell", fitted)
    elsewhere(tmp_path, monkeypatch)
    assert sobolev.main(["train", "--quick", "--out", str(tmp_path)]) == 2
    found = capsys.readouterr()
    assert WAITED in found.out
    assert "fitted" in found.err


def test_a_study_says_what_it_waits_for_and_hands_over_what_it_has_written_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def written(config: object, folder: Path, *rest: object) -> Any:
        def conclude(*, report: bool) -> None:
            assert report  # since its numbers are handed over, also of who only waited for the end
            storage.write(folder / compare.NUMBERS, b'{"own": 1}')

        sharing = SimpleNamespace(last=False)
        return SimpleNamespace(train=lambda: None, conclude=conclude, sharing=sharing)

    held = list[bool]()
    real = compare.hand_over

    def noting(target: str | None, place: Path) -> None:
        held.append((tmp_path / lock.NAME).is_file())
        real(target, place)

    monkeypatch.setattr(comparing, "Comparing", written)
    monkeypatch.setattr(compare, "hand_over", noting)
    elsewhere(tmp_path, monkeypatch)
    words = ["activations", "--quick", "--out", str(tmp_path)]
    assert compare.main([*words, "--json=-"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == {"own": 1}
    assert WAITED in found.err
    assert held == [True]


@pytest.mark.parametrize("name", ["scaling", "transfer"])
def test_grids_and_transfers_say_and_hand_over_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module, held = {"scaling": scaling, "transfer": transfer}[name], list[bool]()

    def nothing(*given: object, **how: object) -> Any:
        return []

    made_up = {
        "scaling": ("section", "print_section", "check_memory", "read_cells"),
        "transfer": ("sections", "about", "page"),
    }
    for each in made_up[name]:
        monkeypatch.setattr(module, each, nothing)
    if name == "scaling":
        study = SimpleNamespace(
            chosen=SimpleNamespace(arms=()), common=SimpleNamespace(model=None)
        )  # fmt: skip
        monkeypatch.setattr(scaling, "queue", lambda config: [SimpleNamespace(config=study)])
        monkeypatch.setattr(scaling, "costs", lambda *given: [SimpleNamespace(runs=0)])
        monkeypatch.setattr(scaling, "run", nothing)
    monkeypatch.setattr(transfer, "Transferring", lambda *given: SimpleNamespace(all=nothing))
    monkeypatch.setattr(transfer, "page", lambda *given: "")
    monkeypatch.setattr(scaling.report, "written", nothing)
    monkeypatch.setattr(
        module, "hand_over", lambda *given: held.append((tmp_path / lock.NAME).is_file())
    )
    elsewhere(tmp_path, monkeypatch)
    assert compare.main([name, "--out", str(tmp_path)]) == 0
    assert WAITED in capsys.readouterr().out
    assert held == [True]


def test_a_figure_is_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, seen = Figure.savefig, list[list[str]]()

    def savefig(figure: Figure, file: Any, **options: Any) -> None:
        real(figure, file, **options)
        seen.append([found.name for found in tmp_path.iterdir()])

    monkeypatch.setattr(Figure, "savefig", savefig)
    with panels(tmp_path / "curve", 1, title="A curve"):
        pass
    assert seen == [[], ["curve.png"]]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")


def test_rows_that_another_process_has_added_meanwhile_are_timed_beside_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = study(tmp_path / "a", "bytes-0.3m", 7040, {"swiglu": lambda d: 1.6}, sd=0.001)
    beside, carried_out = ["swiglu", "relu2"], list[tuple[str, ...]]()

    def carry_out(study: Any, *rest: object) -> None:
        carried_out.append(study.arms)
        if "gelu" not in beside:
            beside.insert(1, "gelu")

    def found(config: object, folder: Path) -> Any:
        return SimpleNamespace(arms=tuple(beside), data=SimpleNamespace(cache_dir=str(tmp_path)))

    monkeypatch.setattr(leaderboard, "study_of", found)
    monkeypatch.setattr(leaderboard, "carry_out", carry_out)
    assert compare.main(["leaderboard", str(root), "--add", "relu2"]) == 0
    assert carried_out == [("swiglu", "relu2"), ("swiglu", "gelu", "relu2")]


def test_of_all_checkpoints_those_that_the_run_deletes_meanwhile_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)

    def load(workdir: object, step: str, **options: object) -> Any:
        if step == "10":
            raise InputError("There is no checkpoint of step 10")
        return SimpleNamespace(params={})

    monkeypatch.setattr(following, "load_trained", load)
    monkeypatch.setattr(following, "places_of", lambda *parts: {})
    monkeypatch.setattr(following, "sparsity_of", lambda *parts: {})
    model, told = SimpleNamespace(folder=tmp_path, cfg=None), list[str]()
    words: Any = (model, {}, [10, 20], told.append)
    assert following.along(*words, kept=True) == [{"step": 20}]
    assert told[1] == "step 10 is left out: the run has deleted its checkpoint meanwhile"
    with pytest.raises(InputError, match="no checkpoint of step 10"):
        following.along(*words)
    with pytest.raises(InputError, match="has deleted all"):
        following.along(model, {}, [10], told.append, kept=True)  # pyright: ignore
