"""A user's own activation as an arm: of reports made again, leaderboards, grids and transfers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scaling_folders import STEP_TOKENS, study, write_run

from experiments.compare import __main__ as compare
from experiments.compare import own_files
from experiments.compare.across import tables
from experiments.compare.across.cells import read_cell, read_cells
from experiments.compare.across.grid import from_command, queue
from experiments.compare.across.leaderboard import LeaderboardConfig, standings, study_of
from experiments.compare.across.own_report import check_no_fewer, read_finished
from experiments.compare.across.scaling import costs
from experiments.compare.across.transfer import TransferConfig
from experiments.compare.arms import Arm
from experiments.compare.timing import TIMES
from experiments.run.named_activations import cell_names, chosen_by
from polycom_jax import InputError

TEXT = """
import jax
import polycom_jax as pc

def soft_gate(x, beta):
    return x * jax.nn.sigmoid(beta * x)

act = pc.activation(soft_gate, {"beta": 1.0})
steep = pc.activation(soft_gate, {"beta": 4.0})
"""
LENGTHS = (560, 1120, 2240)


def of_loss(loss: float) -> Callable[[float], float]:
    return lambda tokens: loss - tokens / 1e8


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of the user's; each test is a process that has not imported it."""
    monkeypatch.setattr("polycom_jax.reference._LOADED", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TEXT)
    return tmp_path


@pytest.fixture
def mine(user: Path) -> Arm:
    return Arm.of("mine.py:act")


@pytest.fixture
def folder(user: Path, mine: Arm) -> Path:
    """What a study of it leaves."""
    losses = {"swiglu": of_loss(1.6), "poly_norm": of_loss(1.58), mine.folder: of_loss(1.59)}
    root = study(user / "study", "bytes-0.1m", 2240, losses, sd=0.001)
    own_files.keep(root, [Arm.of("swiglu"), mine])
    seconds = {name: [0.1, 0.11] for name in losses}
    memory = dict.fromkeys(losses, 1 << 20)
    (root / TIMES).write_text(json.dumps({"seconds": seconds, "memory": memory}))
    return root


def edit(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file becomes another, and the next test's calls those of another process."""
    (user / "mine.py").write_text(TEXT.replace("1.0", "1.5"))
    monkeypatch.setattr("polycom_jax.reference._LOADED", {})


def test_a_study_is_reported_again_with_it(folder: Path, mine: Arm):
    found = read_finished(folder).findings
    assert [arm.name for arm in found.arms] == ["swiglu", "poly_norm", "soft_gate"]
    (one,) = [c for c in found.comparisons if (c.arm, c.budget) == ("soft_gate", "tokens")]
    assert one.result is not None
    assert one.result.mean == pytest.approx(-0.01, abs=0.002)
    assert own_files.worded([Arm.of("swiglu"), mine]) == {"activation soft_gate": mine.activation}
    own = read_cell(folder).arms[mine.folder]
    assert (own.parameters, len(own.runs)) == (114_048 + 2, 5)


def test_what_lies_in_the_folder_is_the_file_and_where_it_was(folder: Path, mine: Arm):
    assert (folder / "activations" / f"{mine.folder}.py").read_text() == TEXT
    assert json.loads((folder / "activations.json").read_text()) == {mine.folder: mine.activation}
    own_files.keep(folder, [Arm.of("mine.py:steep")])
    assert len(json.loads((folder / "activations.json").read_text())) == 2


@pytest.mark.parametrize("change", ["edited", "gone"])
def test_a_file_that_is_another_now_is_told_and_its_copy_is_read(
    folder: Path,
    user: Path,
    mine: Arm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
):
    edit(user, monkeypatch)
    if change == "gone":
        (user / "mine.py").unlink()
    assert compare.main(["leaderboard", str(folder)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    copy = f"{folder / 'activations' / mine.folder}.py:act"
    said = "is not there" if change == "gone" else "is another file now"
    assert f"{mine.folder} is left out: " in told
    assert said in told
    assert f"--activation {copy} reads it" in told
    rows = {row["arm"] for row in json.loads((folder / "leaderboard.json").read_text())["rows"]}
    assert mine.folder not in rows
    (cell,) = read_cells(folder)
    assert cell.left_out[0] in tables.folders([cell]).notes
    assert compare.main(["leaderboard", str(folder), "--activation", copy]) == 0
    assert "left out" not in capsys.readouterr().out
    assert mine.folder in (folder / "leaderboard.json").read_text()
    assert mine.folder in read_cells(folder, [copy])[0].arms
    assert read_finished(folder, [copy]).study.arms[-1].name == "soft_gate"


def test_a_report_with_it_stays_where_its_file_is_another_now(
    folder: Path, user: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "results.json").write_text(
        json.dumps({"arms": [{"name": n, "losses": [1.0] * 5} for n in ("swiglu", "soft_gate")]})
    )
    check_no_fewer(read_finished(folder), folder)
    edit(user, monkeypatch)
    unread = own_files.read(folder).unread.values()
    with pytest.raises(InputError, match=r"has the results of soft_gate, too, .*--activation"):
        check_no_fewer(read_finished(folder), folder, unread)


def test_runs_of_an_earlier_version_are_left_out_and_told(folder: Path):
    write_run(folder, "soft_gate-0123456789ab", 0, (2.0, 1.9, 1.8), LENGTHS)
    cell = read_cell(folder)
    (told,) = cell.left_out
    assert f"remove {folder / 'runs' / 'soft_gate-0123456789ab'}" in told
    assert len(cell.arms) == 3


def test_a_file_under_another_arm_s_name_is_none_of_it(folder: Path, mine: Arm):
    other = Arm.of("mine.py:steep")
    (folder / "activations.json").write_text(json.dumps({mine.folder: other.activation}))
    assert mine.folder in own_files.read(folder).unread


def test_names_are_pinned_when_they_are_read(user: Path, monkeypatch: pytest.MonkeyPatch):
    first = Arm.of("mine.py:act").activation
    config = TransferConfig(activations=("swiglu", "mine.py:act"))
    scaling = from_command(["--activation", "mine.py:act"])
    edit(user, monkeypatch)
    assert config.activations == ("swiglu", first)
    assert scaling.activation == (first,)


def test_a_file_that_cannot_be_imported_now_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(activation: str) -> Arm:
        raise InputError(f"{activation} needs a module that is gone.")

    monkeypatch.setattr(Arm, "of", fails)
    (why,) = own_files.read(folder).unread.values()
    assert "needs a module that is gone. --activation" in why


@pytest.mark.parametrize("program", ["report", "leaderboard"])
def test_a_file_that_no_run_is_of_is_refused(
    folder: Path, mine: Arm, capsys: pytest.CaptureFixture[str], program: str
):
    assert compare.main([program, str(folder), "--activation", "mine.py:steep"]) == 2
    error = capsys.readouterr().err
    assert f"no runs are of {Arm.of('mine.py:steep').folder}" in error
    assert f"of activations in files there are {mine.folder}" in error


def test_two_activations_of_one_function_and_file_have_files_of_their_own(user: Path):
    one, other = Arm.of("mine.py:act"), Arm.of("mine.py:steep")
    assert one.name == other.name == "soft_gate"
    assert one.folder != other.folder
    for reference, arm in (("mine.py:act", one), ("mine.py:steep", other)):
        assert cell_names([reference], chosen_by([reference])) == {"soft_gate": arm.folder}
    (user / "moved.py").write_text(TEXT)
    assert Arm.of("moved.py:act").folder == one.folder


def test_times_of_an_earlier_version_are_not_taken(
    folder: Path, user: Path, mine: Arm, monkeypatch: pytest.MonkeyPatch
):
    edit(user, monkeypatch)
    new = Arm.of("mine.py:act")
    for seed in range(5):
        write_run(folder, new.folder, seed, (2.0, 1.9, 1.8), LENGTHS)
    own_files.keep(folder, [new])
    with pytest.raises(InputError, match=f"has no times of {new.folder}"):
        read_finished(folder)


def test_two_versions_are_rows_of_their_own_and_no_one_report(folder: Path):
    new = Arm.of("mine.py:steep")
    for seed in range(5):
        write_run(folder, new.folder, seed, (2.0, 1.9, 1.5), LENGTHS)
    own_files.keep(folder, [new])
    with pytest.raises(InputError, match="2 versions of soft_gate"):
        read_finished(folder)
    rows = [row.arm for row in standings(read_cell(folder))]
    assert len(rows) == 4
    assert rows[0] == new.folder


def test_a_leaderboard_takes_it_as_a_row(folder: Path, mine: Arm, user: Path):
    there = study_of(LeaderboardConfig(str(folder), add=("relu2",)), folder)
    assert there.arms == ("swiglu", "poly_norm", "relu2", "soft_gate")
    assert there.activation == (mine.activation,)
    new = study_of(LeaderboardConfig(str(folder), add=("mine.py:steep",)), folder)
    assert new.activation == (Arm.of("mine.py:steep").activation,)
    folders = {arm.folder for arm in new.chosen.arms}
    assert folders == {"swiglu", "poly_norm", Arm.of("mine.py:steep").folder}
    with pytest.raises(InputError, match="'soft_gate' is named twice"):
        LeaderboardConfig(str(folder), add=("mine.py:act", "mine.py:steep"))
    with pytest.raises(InputError, match=r"has no 'none' \(it has"):
        LeaderboardConfig(str(folder), add=("mine.py:none",))


def test_a_grid_has_it_at_every_size_from_the_first_entry_on(
    user: Path, mine: Arm, capsys: pytest.CaptureFixture[str]
):
    words = ["--activation", "mine.py:act", "--out", str(user / "grid")]
    config = from_command(words)
    items = queue(config)
    assert [item.config.chosen.arms[-1].name for item in items] == ["soft_gate"] * len(items)
    assert {item.config.model for item in items} == set(config.sizes)
    assert mine.activation in items[0].command
    assert compare.main(["scaling", "--dry-run", *words]) == 0
    assert "soft_gate" in capsys.readouterr().out
    first = costs(config, user / "grid")[0]
    assert first.arms == ("swiglu", "poly_norm", "soft_gate")
    plain = costs(from_command(words[2:]), user / "grid")[0]
    assert first.runs == plain.runs * 3 / 2


def test_runs_that_a_grid_has_of_it_are_not_counted_as_left(user: Path, mine: Arm):
    words = ["--activation", "mine.py:act", "--out", str(user / "grid")]
    config = from_command(words)
    before = costs(config, user / "grid")[0]
    losses = {"swiglu": of_loss(1.6), mine.folder: of_loss(1.59)}
    root = study(user / "grid" / "bytes-0.1m-20", "bytes-0.1m", 2240, losses)
    own_files.keep(root, [mine])
    after = costs(config, user / "grid")[0]
    searched, results = 3, 5  # of `study`
    assert before.runs - after.runs == 2 * (searched + results)
    assert after.seconds is not None
    assert STEP_TOKENS == 8 * 128


def test_transfer_takes_it(user: Path, mine: Arm):
    config = TransferConfig(activations=("swiglu", "mine.py:act"))
    assert config.model("mine.py:act", 64, "mup").activation == mine.activation
    with pytest.raises(InputError, match="named twice"):
        TransferConfig(activations=("mine.py:act", "mine.py:steep"))
    with pytest.raises(InputError, match="nothing"):
        TransferConfig(activations=("nothing",))


def test_a_damaged_list_of_files_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    for text in ("[]", "{", '{"soft_gate-0": "mine.py:act"}', '{"soft_gate-0": "mine"}'):
        (folder / "activations.json").write_text(text)
        assert compare.main(["report", str(folder)]) == 2
        assert "activations.json is not as a study has written it" in capsys.readouterr().err
