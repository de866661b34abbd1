"""What a run compiles: each program once, and in a second start none of them anew."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src.compilation_cache import compress_executable, reset_cache

from experiments.faults.compare import differences
from experiments.pretrain import __main__ as pretrain
from experiments.run import compiled as programs
from experiments.run.compiled import cache_compiled, drop_torn
from polycom_jax import storage

CACHE_OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., int]
COMPILED = "/jax/core/compile/backend_compile_duration"
OURS = {"step", "eval_step", "_generate"}
"""Names of the jitted functions of training, evaluation and sampling."""


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of the functions that XLA compiles (or reads from its cache) meanwhile, in order."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            names.append(re.sub(r"^jit[_(]|[)]$", "", str(kwargs.get("fun_name"))))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_a_run_with_evaluations_samples_and_checkpoints_compiles_each_program_once(
    settings: Path, tmp_path: Path, compiled: list[str]
):
    # Its own number of tokens: another test's run may have left the sampler.
    words = ["--config", str(settings), "--workdir", str(tmp_path), "--run.sample-tokens", "6"]
    assert pretrain.main(words) == 0
    counts = Counter(compiled)
    assert {name: counts[name] for name in OURS} == dict.fromkeys(OURS, 1)


def test_a_program_whose_writing_was_cut_short_is_not_kept(tmp_path: Path):
    whole = compress_executable(bytes(range(256)) * 40)
    for index, raw in enumerate((whole, whole[:-9], whole[:5], b"", whole)):
        (tmp_path / f"jit_step-{index}-cache").write_bytes(raw)
    drop_torn(tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["jit_step-0-cache", "jit_step-4-cache"]
    drop_torn(tmp_path / "not there")


def test_a_program_that_another_process_is_writing_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, entry = compress_executable(bytes(range(256)) * 40), tmp_path / "jit_step-cache"
    entry.write_bytes(whole[:9])
    monkeypatch.setattr(programs.time, "sleep", lambda seconds: entry.write_bytes(whole))
    drop_torn(tmp_path)
    assert entry.read_bytes() == whole


def test_programs_that_others_delete_meanwhile_or_keep_to_themselves_are_left_alone(tmp_path: Path):
    (tmp_path / "jit_gone-cache").symlink_to(tmp_path / "nowhere")
    (tmp_path / "jit_folder-cache").mkdir()
    drop_torn(tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_an_option_that_xla_does_not_take_is_told_in_a_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = {"xla_no_such_option": "1"}
    monkeypatch.setattr(programs, "compiler_options", lambda config, display: options)
    assert run(tmp_path / "run", "--steps", "1") == 2
    said = capsys.readouterr().err
    assert "compiler_options: No such compile option: 'xla_no_such_option'. They are those" in said
    assert "--run.compiler-options with nothing behind it leaves all of them out" in said
    assert said.count("\n") == 1


def test_programs_may_be_kept_in_a_bucket_and_are_read_there(bucket: str, compiled: list[str]):
    before = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}
    hits: list[str] = []

    def listen(event: str, **kwargs: str | int) -> None:
        hits.extend([event] if event.endswith("/cache_hits") else [])

    jax.monitoring.register_event_listener(listen)
    try:
        cache_compiled(None, place=f"{bucket}/programs")
        jax.config.update(CACHE_OPTIONS[1], 0.0)
        reset_cache()
        x = jnp.arange(7.0)
        jax.jit(lambda x: jnp.sin(x) * 3 + 1)(x)
        kept = storage.entries(storage.place(f"{bucket}/programs"))
        assert any(name.endswith("-cache") for name in kept)
        assert hits == []
        jax.clear_caches()
        jax.jit(lambda x: jnp.sin(x) * 3 + 1)(x)
        assert hits != []
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


MIXTURE = ("--model.moe.num-experts", "4", "--model.moe.top-k", "2")


@pytest.mark.slow
@pytest.mark.parametrize("model", [(), MIXTURE], ids=["dense", "mixture"])
def test_a_second_start_reads_its_programs_from_the_cache_and_comes_to_the_same_bits(
    model: tuple[str, ...], settings: Path, tmp_path: Path
):
    code = (
        "import sys, jax\n"
        "from experiments.pretrain import __main__ as pretrain\n"
        "events = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: events.append(name))\n"
        "code = pretrain.main(sys.argv[1:])\n"
        "hits = events.count('/jax/compilation_cache/cache_hits')\n"
        "misses = events.count('/jax/compilation_cache/cache_misses')\n"
        "print('COUNTS', code, hits, misses)\n"
    )
    cache = tmp_path / "cache"

    def start(workdir: Path) -> tuple[int, int, int, str]:
        words = [
            "--config",
            str(settings),
            "--workdir",
            str(workdir),
            "--data.cache-dir",
            str(cache),
            *model,
        ]
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        counts = done.stdout.split("COUNTS")[1].split()
        return int(counts[0]), int(counts[1]), int(counts[2]), done.stderr

    first = start(tmp_path / "first")
    second = start(tmp_path / "second")
    assert first[0] == second[0] == 0
    assert first[2] > 0
    assert second[1] >= first[2]
    # A mismatch of machine features, for one, would be told there.
    assert second[3] == first[3] == ""
    assert list((cache / "compiled").iterdir())
    assert differences(tmp_path / "first", tmp_path / "second") == []
