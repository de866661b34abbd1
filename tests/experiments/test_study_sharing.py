"""Several processes at one study: what each takes, what they leave to each other, and its order."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.compare import comparing, config, sharing
from experiments.compare.agenda import agenda
from experiments.compare.arms import Arm
from experiments.compare.config import CompareConfig
from experiments.compare.runs import Run, RunFolder, RunKey
from experiments.compare.sharing import Sharing
from experiments.run import lock
from experiments.run.rate_search import FIRST_SEED, MOST_EXTENSIONS
from experiments.terminal.progress import Display
from polycom_jax import storage

ROOT = Path(__file__).resolve().parents[2]
RATES = (0.1, 0.2, 0.4, 0.8)
STUDY: Any = config.from_command(
    ["activations", "--quick", "--arms", "swiglu", "relu", "--learning-rates", *map(str, RATES),
     "--search-seeds", "2", "--seeds", "2"]
)  # fmt: skip
Finished = dict[RunKey, Run]


def made(key: RunKey, loss: float = 2.0) -> Run:
    diverged = np.isinf(loss)
    return Run(key, bool(diverged), () if diverged else (loss,), (), (), (), (), 1.0)


def in_order(study: CompareConfig, loss: Callable[[RunKey], float], **carried: float) -> Finished:
    """The runs of one process alone: always the first that is due."""
    finished: Finished = {}
    while due := agenda(study, carried, finished).due:
        key = due[0][1]
        finished[key] = made(key, loss(key))
    return finished


def parabola(key: RunKey) -> float:
    return abs(np.log2(key.rate / 0.2)) + 0.1 * (key.seed - FIRST_SEED)


def test_arm_by_arm_the_rates_on_seeds_of_their_own_then_the_results_seed_by_seed():
    keys = [*in_order(STUDY, parabola)]
    searched, results = keys[:16], keys[16:]
    assert [(key.arm, key.rate, key.seed - FIRST_SEED) for key in searched] == [
        (arm, rate, seed) for arm in ("swiglu", "relu") for rate in RATES for seed in (0, 1)
    ]
    assert {key.lengths for key in searched} == {STUDY.lengths[-1:]}
    assert [(key.arm, key.rate, key.seed) for key in results] == [
        (arm, 0.2, seed) for seed in (0, 1) for arm in ("swiglu", "relu")
    ]
    assert {key.lengths for key in results} == {STUDY.lengths}


def test_no_rate_wins_by_the_run_that_is_left():
    losses = {0.1: (3.0, 3.0), 0.2: (2.0, 2.5), 0.4: (1.0, np.inf), 0.8: (4.0, 4.0)}
    finished = in_order(STUDY, lambda key: losses[key.rate][key.seed % FIRST_SEED % 2])
    found = agenda(STUDY, {}, finished).searches["relu"]
    assert (found.best, found.at_edge) == (0.2, False)
    assert found.losses == (3.0, 2.25, np.inf, 4.0)


def test_a_grid_grows_by_one_rate_after_the_other_and_a_carried_one_by_halves():
    grown = agenda(STUDY, {}, in_order(STUDY, lambda key: -key.rate)).searches["swiglu"]
    assert grown.rates == (*RATES, *(0.8 * 2**k for k in range(1, MOST_EXTENSIONS + 1)))
    assert grown.at_edge
    halved = agenda(
        STUDY, {"relu": 0.4}, in_order(STUDY, lambda key: key.rate, relu=0.4)
    ).searches  # fmt: skip
    assert halved["relu"].rates == tuple(0.4 / 2**k for k in reversed(range(MOST_EXTENSIONS)))
    assert halved["swiglu"].rates[-4:] == RATES
    # Where all diverge so far, a lower rate may not.
    lost = in_order(STUDY, lambda key: np.inf if key.rate > 0.15 else 1 / key.rate, relu=0.4)
    assert agenda(STUDY, {"relu": 0.4}, lost).searches["relu"].rates == (0.05, 0.1, 0.2, 0.4)


def test_what_is_due_needs_nothing_that_is_not_finished():
    """So that whoever takes any of it has what it depends on; and nothing is due twice."""
    finished: Finished = {}
    while due := agenda(STUDY, {}, finished).due:
        keys = [key for _, key in due]
        assert len({*keys}) == len(keys)
        assert not finished.keys() & {*keys}
        searching = {key.arm for key in keys if key.seed >= FIRST_SEED}
        assert not searching & {key.arm for key in keys if key.seed < FIRST_SEED}
        finished[keys[-1]] = made(keys[-1], parabola(keys[-1]))  # the last one first
    assert finished.keys() == in_order(STUDY, parabola).keys()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "AGAIN_S", 0.02)
    monkeypatch.setattr(lock, "LOST_S", 0.1)


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> storage.Place:
    """Of a study."""
    there = request.param == "bucket"
    return storage.place(request.getfixturevalue("bucket") if there else str(tmp_path))


def shared(folder: storage.Place, train: Callable[[RunKey], Run], said: list[str]) -> Sharing:
    runs = RunFolder(folder / "runs")

    def trained(arm: Arm, key: RunKey, hold: lock.Hold) -> Run:
        run = train(key)
        hold.confirm()
        runs.write(run)
        return run

    display = Display()
    display.note = said.append  # pyright: ignore[reportAttributeAccessIssue]
    return Sharing(STUDY, {}, runs, trained, display)


@pytest.mark.usefixtures("quick")
def test_two_at_one_study_train_every_run_once_and_end_with_the_same(folder: storage.Place):
    both, taken, ends = threading.Barrier(2, timeout=30), list[tuple[int, RunKey]](), {}
    last = list[bool]()

    def worker(number: int) -> None:
        own = 0

        def train(key: RunKey) -> Run:
            nonlocal own
            own += 1
            taken.append((number, key))
            if own == 1:
                both.wait()  # each has a run while the other has one
            time.sleep(0.01)
            return made(key, parabola(key))

        work = shared(folder, train, [])
        ends[number] = (work.all(), work.finished)
        last.append(work.last)

    threads = [threading.Thread(target=worker, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    alone = in_order(STUDY, parabola)
    assert sorted(key.file for _, key in taken) == sorted(key.file for key in alone)
    assert {number for number, _ in taken} == {0, 1}
    assert ends[0] == ends[1]
    assert ends[0][1] == alone
    assert any(last)  # who has trained the last run reports
    assert not storage.entries(folder / "state")
    assert not storage.is_folder(folder / "state")


@pytest.mark.usefixtures("quick")
def test_a_run_that_another_has_finished_meanwhile_is_read(tmp_path: Path):
    runs, said = RunFolder(storage.named(tmp_path / "runs")), list[str]()
    trained = list[RunKey]()

    def train(key: RunKey) -> Run:
        trained.append(key)
        if len(trained) == 1:  # while this one is trained, another process ends a search
            for due in in_order(STUDY, parabola):
                if due.arm == "relu" and due.seed >= FIRST_SEED:
                    runs.write(made(due, parabola(due)))
        return made(key, parabola(key))

    work = shared(storage.place(str(tmp_path)), train, said)
    assert not work.all().due
    assert work.last
    assert {key.seed for key in trained if key.arm == "relu"} == {0, 1}
    assert said[0].startswith("[1/20] swiglu, rate 0.1, seed 1000000: held-out 1.0000 in 1.0 s")
    assert said[1].startswith("relu: rate 0.2")
    assert said[2].startswith("[10/20] swiglu, rate 0.1, seed 1000001")
    assert said[-1].startswith("[20/20] ")


@pytest.mark.usefixtures("quick")
def test_a_run_that_another_process_has_taken_over_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As after a machine has stood still for longer than its lease."""
    said, asked = list[str](), list[RunKey]()
    runs = RunFolder(storage.named(tmp_path / "runs"))
    keys = [*in_order(STUDY, parabola)]

    def train(key: RunKey) -> Run:
        asked.append(key)
        if len(asked) == 1:
            runs.write(made(key, parabola(key)))  # the other one's
            raise storage.Lost("taken over")
        return made(key, parabola(key))

    work = shared(storage.place(str(tmp_path)), train, said)
    work.all()
    assert said[0] == "swiglu, seed 1000000 is another process's now"
    assert asked.count(keys[0]) == 1
    assert sorted(key.file for key in asked) == sorted(key.file for key in keys)


@pytest.mark.usefixtures("quick")
def test_who_only_waits_for_the_last_run_does_not_report(tmp_path: Path):
    runs, place = RunFolder(storage.named(tmp_path / "runs")), storage.place(str(tmp_path))
    *most, last = in_order(STUDY, parabola)
    for key in most:
        runs.write(made(key, parabola(key)))
    said = list[str]()
    both = [shared(place, lambda key: made(key, parabola(key)), said) for _ in range(2)]
    threads = [threading.Thread(target=each.all) for each in both]
    with runs.taken(last, said.append):
        for thread in threads:
            thread.start()
        while sum("waiting" in line for line in said) < 2:
            time.sleep(0.01)
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(each.last for each in both) == [False, True]


@pytest.mark.parametrize("last", [True, False])
def test_the_process_of_the_last_run_reports_and_the_others_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
):
    concluded, said = list[bool](), list[str]()
    study = SimpleNamespace(
        train=lambda: None,
        conclude=lambda *, report: concluded.append(report),
        sharing=SimpleNamespace(last=last),
    )
    monkeypatch.setattr(comparing, "Comparing", lambda *given: study)
    display: Any = SimpleNamespace(note=said.append)
    assert comparing.carry_out(replace(STUDY, out=str(tmp_path)), "-", display) is last
    assert concluded == [last]
    assert [("the same command once more does" in line) for line in said] == [True] * (not last)


HOLDER = """
    import sys, time
    from experiments.compare.runs import RunFolder, RunKey
    from polycom_jax import storage
    key = RunKey("swiglu", 0.1, 1000000, (int(sys.argv[2]),))
    with RunFolder(storage.named(sys.argv[1])).taken(key, print):
        print("taken", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is at the first run of the study."""
    words = [str(tmp_path / "runs"), str(STUDY.lengths[-1])]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.usefixtures("quick")
def test_the_run_of_a_process_that_is_killed_is_left_to_the_others(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
):
    said, trained = list[str](), list[RunKey]()

    def train(key: RunKey) -> Run:
        trained.append(key)
        return made(key, parabola(key))

    def sleep(seconds: float) -> None:
        if holder.poll() is None:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        clock[0] += lock.LOST_S

    clock = [0.0]
    monkeypatch.setattr(sharing, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    shared(storage.place(str(tmp_path)), train, said).all()
    first = agenda(STUDY, {}, {}).due[0][1]
    # The other arm came first, and what was left of this one's search after the killed process.
    assert trained[0] != first
    assert {key.arm for key in trained[: trained.index(first)] if key.seed < FIRST_SEED} == {"relu"}
    # Of this arm one run of the search and two of the results.
    assert [line for line in said if "waiting" in line] == [
        "waiting for other processes: 3 runs are left"
    ]
    assert len(trained) == 20
    assert not (tmp_path / "state").exists()


PROGRAM = """
    import sys
    from experiments.compare import __main__ as compare, config, studies
    from test_compare_findings import SMALL, TWO
    config.SHAPES["bytes-0.1m"], studies.STUDIES["moe"] = SMALL, TWO
    sys.exit(compare.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_study_of_two_processes_has_the_numbers_of_one(settings: Path, tmp_path: Path):
    def begun(out: str) -> subprocess.Popen[bytes]:
        command = [
            "moe", "--model", "bytes-0.1m", "--search-seeds", "1", "--data",
            str(settings.parent / "little.txt"), "--data.document-bytes", "2000", "--seq-len",
            "16", "--steps", "8", "--seeds", "2", "--heldout-tokens", "64", "--out",
            str(tmp_path / out),
        ]  # fmt: skip
        program = [sys.executable, "-c", textwrap.dedent(PROGRAM), *command]
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "experiments")))
        return subprocess.Popen(program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})

    assert begun("one").wait() == 0
    both = [begun("both") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    one, two = (
        RunFolder(storage.named(tmp_path / name / "runs")).all() for name in ("one", "both")
    )
    one, two = ([replace(run, seconds=0.0, commit=None) for run in runs] for runs in (one, two))
    assert one == two
    assert (tmp_path / "both" / "report.md").is_file()
