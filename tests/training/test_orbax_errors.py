"""Orbax is kept off the terminal; everybody else is heard, and no hook stays behind."""

import asyncio
import errno
import functools
import gc
import itertools
import logging
import sys
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from absl import logging as absl_logging

from polycom_jax.training import Checkpoints, orbax_errors
from polycom_jax.training.checkpoint import CheckpointWarning
from polycom_jax.training.orbax_errors import Silence, quietly

ORBAX = str(Path(ocp.__file__).parent / "some.py")
MINE = str(Path(__file__).parent / "orbax" / "tensorstore.py")


def run(code: str, file: str, **names: Any) -> dict[str, Any]:
    """Executes `code` as if it stood in `file`."""
    exec(compile(code, file, "exec"), names)
    return names


def hooks() -> tuple[Any, ...]:
    """What `Silence` changes of the interpreter."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    return sys.unraisablehook, *(tuple(logger.filters) for logger in loggers)


@pytest.fixture(autouse=True)
def nothing_stays():
    before = hooks()
    yield
    assert hooks() == before


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the hook that was there before."""
    texts: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: texts.append(str(it.exc_value)))
    return texts


def complain(text: str, file: str = MINE) -> None:
    """An object of `file` fails where nobody can catch it."""
    code = "class It:\n def __del__(self): raise ValueError(text)\nit = It()\ndel it"
    run(code, file, text=text)


def cut_off(file: str) -> None:
    """A coroutine of `file` is deleted while it waits, and fails at that."""
    code = (
        "async def wait(point):\n"
        " try: await point\n"
        " except GeneratorExit: raise ValueError('cut off') from None\n"
    )

    class Point:
        def __await__(self):
            yield

    coroutine = run(code, file)["wait"](Point())
    coroutine.send(None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_number_may_end_in_any_order(heard: list[str], order: tuple[int, ...]):
    before = hooks()
    silences = [Silence().__enter__() for _ in range(3)]
    for i in order:
        cut_off(ORBAX)
        complain("mine")
        silences[i].__exit__()
    assert hooks() == before
    assert heard == ["mine"] * 3
    assert sorted(len(silence.reports) for silence in silences) == [1, 2, 3]
    cut_off(ORBAX)
    assert heard[3:] == ["cut off"]


def test_one_that_ends_by_an_error_or_twice_leaves_the_others(heard: list[str]):
    outer = Silence().__enter__()
    inner = Silence()
    with pytest.raises(ValueError, match="in the middle"), inner:
        raise ValueError("in the middle")
    inner.__exit__()
    cut_off(ORBAX)
    assert (outer.reports, inner.reports, heard) == (["cut off"], [], [])
    outer.__exit__()


def test_threads_share_the_hooks(heard: list[str]):
    before = hooks()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(200):
            with Silence():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hooks() == before
    assert orbax_errors._open == []


def test_checkpoints_that_nobody_closes_leave_none(tmp_path: Path):
    before = hooks()
    checkpoints = Checkpoints(tmp_path)
    state: Any = {"x": jnp.arange(3.0)}
    checkpoints.save(1, state)
    checkpoints.wait()
    assert hooks() != before
    del checkpoints
    gc.collect()
    assert hooks() == before


def test_a_hook_that_was_taken_out_lives_on(heard: list[str]):
    """CPython counts no reference of a thread that is in it: it would crash there."""
    with Silence():
        hook = weakref.ref(sys.unraisablehook)
    gc.collect()
    assert hook() is not None
    with Silence():
        assert sys.unraisablehook is hook()


def test_a_hook_that_was_put_above_stays_and_is_heard(heard: list[str]):
    """A user's own, set while one is open and taken out after it has ended."""
    before = sys.unraisablehook
    silence = Silence().__enter__()
    ours, above = sys.unraisablehook, []

    def own(it: Any) -> None:
        above.append(str(it.exc_value))
        ours(it)

    sys.unraisablehook = own
    silence.__exit__()
    assert sys.unraisablehook is own
    with Silence() as second:
        cut_off(ORBAX)
        complain("mine")
    assert sys.unraisablehook is own
    assert (second.reports, above, heard) == (["cut off"], ["mine"], ["mine"])
    sys.unraisablehook = ours
    complain("yours")
    assert heard == ["mine", "yours"]
    with Silence():
        assert sys.unraisablehook is ours
    assert sys.unraisablehook is before


def test_logs_are_told_apart_by_their_file(caplog: pytest.LogCaptureFixture):
    code = "log('orbax and tensorstore and ocdbt')"
    with Silence():
        run(code, ORBAX, log=absl_logging.error)
        assert caplog.messages == []
        run(code, MINE, log=absl_logging.error)
        absl_logging.error("orbax.checkpoint failed in %s", ORBAX)
        absl_logging.exception("with its error", exc_info=OSError("orbax"))
    assert len(caplog.messages) == 3


def test_absl_may_have_a_logger_of_another_class(caplog: pytest.LogCaptureFixture):
    """As after `logging.getLogger("absl")` before absl is imported: records name absl's file."""
    plain = logging.Logger("absl")
    plain.addHandler(caplog.handler)
    plain.addFilter(orbax_errors._is_of_others)
    code = "def say(*args): log(40, 'said', *args)\nsay()"
    run(code, absl_logging.__file__, log=plain.log)
    assert caplog.messages == ["said"]
    helper = run("def error(log): log(40, 'orbax')", absl_logging.__file__)["error"]
    run("error(log)", ORBAX, error=helper, log=plain.log)
    assert caplog.messages == ["said"]
    run("error(log)", MINE, error=helper, log=plain.log)
    assert caplog.messages == ["said", "orbax"]


TASKS = """
import asyncio
async def fail(): raise ValueError('orbax')
async def leave():
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
"""


@pytest.mark.parametrize(("file", "told"), [(ORBAX, 0), (MINE, 1)])
def test_of_tasks_nobody_asked_for_those_of_others_are_told(
    caplog: pytest.LogCaptureFixture, file: str, told: int
):
    names = run(TASKS, file)
    with Silence():
        asyncio.run(names["leave"]())
        gc.collect()
    assert len(caplog.messages) == told
    assert all("never retrieved" in text for text in caplog.messages)


PENDING = """
import asyncio
async def wait(): await asyncio.get_running_loop().create_future()
async def leave(): asyncio.create_task(wait()); await asyncio.sleep(0)
"""


@pytest.mark.parametrize(("file", "told"), [(ORBAX, 0), (MINE, 1)])
def test_of_tasks_cut_off_those_of_others_are_told(
    caplog: pytest.LogCaptureFixture, file: str, told: int
):
    names = run(PENDING, file)
    with Silence():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(names["leave"]())
        loop.close()
        gc.collect()
    assert len(caplog.messages) == told


UNSTARTED = """
import asyncio
async def never(): pass
async def leave():
    kept = [asyncio.create_task(never())]
    kept.append(kept)  # as in the trace of an error: a cycle, which the collector ends
"""


@pytest.mark.parametrize(("file", "told"), [(ORBAX, 0), (MINE, 1)])
def test_of_tasks_never_begun_those_of_others_are_told(
    file: str, told: int, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
):
    def fail() -> None:
        loop = asyncio.new_event_loop()

        async def leave() -> None:
            await names["leave"]()
            loop.stop()

        task = loop.create_task(leave())
        loop.run_forever()
        loop.close()
        assert task.done()
        raise OSError(errno.EIO, "Input/output error")

    names = run(UNSTARTED, file)
    _, failure = quietly(fail)
    assert failure == "[Errno 5] Input/output error"
    gc.collect()
    never = [w for w in recwarn if "never awaited" in str(w.message)]
    assert (len(never) + len(caplog.messages) > 0) == bool(told)


def test_a_closed_loop_is_kept_quiet_only_where_no_python_called_it(heard: list[str]):
    loop = asyncio.new_event_loop()
    loop.close()

    def report(call: Any, owner: object) -> None:
        """As C++ does where it calls `call` from a thread of its own."""
        try:
            call()
        except RuntimeError as error:
            trace = error.__traceback__
            assert trace is not None
            it: Any = types.SimpleNamespace()
            it.exc_type, it.exc_value, it.exc_traceback = type(error), error, trace.tb_next
            it.err_msg, it.object = None, owner
            sys.unraisablehook(it)

    bare = functools.partial(loop.call_soon_threadsafe, print)
    with Silence() as silence:
        report(bare, None)
        assert (heard, silence.reports) == ([], ["Event loop is closed"])
        report(lambda: bare(), None)  # a frame of ours stands above the loop's
        report(bare, object())
        assert (len(heard), len(silence.reports)) == (2, 1)
    report(bare, None)
    assert len(heard) == 3


def test_a_failure_is_told_by_its_first_cause_at_both_ends():
    def fail() -> None:
        try:
            raise ValueError("array w " + "x" * 900 + ": No space left on device")
        except ValueError as cause:
            raise Exception("See full details") from cause

    _, failure = quietly(fail)
    assert failure is not None
    assert failure.startswith("array w x")
    assert failure.endswith("x: No space left on device")
    assert len(failure) < 300


def test_a_record_of_arrays_under_another_name_is_damage(tmp_path: Path):
    tree: Any = {"w": jnp.arange(4.0)}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.save(2, tree)
    records = tmp_path / "2" / "state" / "array_metadatas" / "process_0"
    records.write_text(records.read_text().replace('"array_metadata"', '"array_metadatc"'))
    with pytest.warns(CheckpointWarning, match="2 is damaged .*'dict' object"):
        Checkpoints(tmp_path).restore(abstract)


def test_what_is_still_under_way_is_waited_for_before_the_hooks_go():
    code = "async def read(future): await future"
    read = run(code, ORBAX)["read"]
    under_way: list[Any] = []

    def ends_later() -> None:
        threading.Event().wait(0.7)  # longer than a look takes
        under_way.clear()

    def fails() -> None:
        loop = asyncio.new_event_loop()
        under_way.append(loop.create_task(read(loop.create_future())))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        threading.Thread(target=ends_later).start()
        raise ValueError("Error reading an array")

    assert quietly(fails)[1] == "Error reading an array"
    assert not under_way
