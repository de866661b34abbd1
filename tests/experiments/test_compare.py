"""A very small study from end to end, resuming it, and its parts against the library's own."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_compare_findings import SMALL, TWO

from experiments.compare import __main__ as compare
from experiments.compare import comparing, concluding, config, train
from experiments.compare.arms import Arm, mixture_of
from experiments.compare.branching import decay_start, rate_share, warmup_steps
from experiments.compare.runs import data_fingerprint
from experiments.compare.studies import STUDIES
from experiments.terminal.flags import replaced
from polycom_jax import models, storage
from polycom_jax.data import DataConfig, prepare
from polycom_jax.sharding import make_mesh
from polycom_jax.training import Multipliers, OptimConfig, make_model_step, make_state, put_batch
from polycom_jax.training.optimizer import make_schedule
from polycom_jax.training.recipes import recipe


@pytest.fixture
def command(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study of two arms that takes seconds."""
    monkeypatch.setitem(config.SHAPES, "bytes-0.1m", SMALL)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(STUDIES, "moe", TWO)  # pyright: ignore[reportArgumentType]
    text = settings.parent / "little.txt"
    return [
        "moe", "--model", "bytes-0.1m", "--search-seeds", "1", "--data", str(text),
        "--data.document-bytes", "2000", "--seq-len", "16", "--steps", "8", "--seeds", "2",
        "--heldout-tokens", "64", "--out", str(tmp_path / "w"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_ends_in_tables_plots_and_a_report_and_resumes_run_by_run(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    assert compare.main(command) == 0
    root = tmp_path / "w"
    assert json.loads((root / "settings.json").read_text())["vocab_size"] == 257
    report = (root / "report.md").read_text()
    for text in ("Differences at equal tokens", "equal seconds", "poly_norm", "no p can be below"):
        assert text in report
    found = json.loads((root / "results.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["swiglu", "poly_norm"]
    for arm in found["arms"]:
        assert len(arm["losses"]) == 2
        assert len(arm["search"]["rates"]) >= 4
        assert arm["rate"] in arm["search"]["rates"]
        assert [tokens for tokens, _ in arm["curve"]] == [2 * 8 * 16, 4 * 8 * 16, 8 * 8 * 16]
    for figure in ("dynamics", "decayed", "differences", "coefficients-poly_norm"):
        assert (root / "plots" / f"{figure}.png").stat().st_size > 1000
    out = capsys.readouterr().out
    following = out.split("Next:")[1].split()
    assert following[following.index("--seeds") + 1] == "4"
    assert following.count("--out") == 1

    # One file lost: this run alone is made again, and comes out the same; more would be added.
    files = {path: path.read_text() for path in sorted((root / "runs").rglob("*.json"))}
    lost = next(path for path in files if "seed1-" in path.name)
    lost.unlink()
    made = []
    original = comparing.train
    monkeypatch.setattr(
        comparing, "train", lambda programs, key, *a, **k: made.append(key) or original(
            programs, key, *a, **k)
    )  # fmt: skip
    monkeypatch.setattr(concluding.figures, "draw_all", lambda *args: [])
    monkeypatch.setattr(comparing, "circumstances", lambda: {"commit": "another"})
    assert compare.main(command) == 0
    assert [(key.arm, key.seed) for key in made] == [(lost.parent.name, 1)]
    for path, text in files.items():
        again, before = json.loads(path.read_text()), json.loads(text)
        assert again["heldout"] == before["heldout"]
        assert again["loss"] == before["loss"]
    # Who reports is one thing, who trained is told of every run.
    commits = {json.loads(text)["commit"] for text in files.values()}
    about = json.loads((root / "results.json").read_text())["about"]
    assert about["commit"] == "another"
    expected = sorted({"another", *(commit or "not known" for commit in commits)})
    assert about["commit of the runs"].split(", ") == expected

    assert compare.main([*command, "--steps", "12"]) == 2
    assert "steps: 8 there, 12 now" in capsys.readouterr().err


def test_a_study_of_an_earlier_version_goes_on_with_the_same_text(tmp_path: Path):
    text = tmp_path / "a.jsonl"
    text.write_text("".join(f'{{"text": "line {n} of many"}}\n' for n in range(90)))
    cfg = DataConfig(str(text), "bytes", cache_dir=str(tmp_path / "c"))
    corpus, kept = prepare(cfg, vocab_size=300), tmp_path / "settings.json"
    assert data_fingerprint(kept, corpus) == corpus.fingerprint
    for began, found in (
        (corpus.earlier(), corpus.earlier()),
        (corpus.fingerprint, corpus.fingerprint),
        ("of another text", corpus.fingerprint),
    ):
        kept.write_text(f'{{"data_fingerprint": "{began}"}}')
        assert data_fingerprint(kept, corpus) == found


@pytest.mark.slow
def test_a_study_in_a_bucket_has_the_numbers_of_one_on_a_disk_and_goes_on(
    command: list[str], tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    root = storage.place(f"{bucket}/study")
    words = replaced(command, {"--out": None, "--workdir": str(root)})
    assert compare.main(words) == 0
    assert compare.main(command) == 0
    inside = set(storage.entries(root))
    assert inside == set(storage.entries(tmp_path / "w"))
    assert inside >= {"report.md", "results.json", "plots/dynamics.png"}
    runs = [name for name in inside if name.startswith("runs/")]
    for name in runs:
        one, other = (json.loads(storage.read(at / name)) for at in (root, tmp_path / "w"))
        assert (one["heldout"], one["loss"]) == (other["heldout"], other["loss"])

    storage.remove(root / runs[0])
    made = []
    write = comparing.RunFolder.write
    monkeypatch.setattr(
        comparing.RunFolder,
        "write",
        lambda self, run: made.append(run.key.file) or write(self, run),
    )
    assert compare.main(words) == 0
    assert made == [runs[0].removeprefix("runs/")]
    assert set(storage.entries(root)) == inside
    assert not list(tmp_path.glob("gs:*"))


def test_after_a_quick_study_comes_the_real_one():
    quick = config.from_command(["order", "--quick", "--out", "somewhere"])
    done = SimpleNamespace(config=quick, command="-", root=Path("somewhere"))
    following = comparing.Comparing.next_command(done)  # pyright: ignore[reportArgumentType]
    assert following == "python -m experiments.compare order --scale cpu"


def test_a_run_is_what_pretraining_computes():
    cfg = replace(SMALL, activation="poly_relu")
    changed = Multipliers(coefficient=3.0)
    optim = OptimConfig(peak_learning_rate=0.01, warmup_steps=2, multipliers=changed)
    mesh = make_mesh(devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (4, 16)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape).copy(),
        "mask": np.ones(tokens.shape, bool),
    }
    state = make_state(cfg, optim, jax.random.key(0), mesh)
    step = make_model_step(cfg, optim, 4, mesh)
    placed = put_batch(batch, mesh)
    arm, schedule = train.compile_programs(cfg, optim, placed), make_schedule(optim, 4)
    ours = arm.init(jax.random.key(0))
    for update in range(4):
        state, metrics = step(state, placed)
        ours, our_metrics = arm.step(ours, placed, np.float32(np.asarray(schedule(update))))
        assert our_metrics["loss"] == metrics["loss"]
        assert our_metrics["grad_norm"] == metrics["grad_norm"]
    jax.tree.map(np.testing.assert_array_equal, ours.params, state.params)


def test_the_schedule_warms_up_stays_and_decays_to_zero():
    lengths = (20, 40, 80)
    assert warmup_steps(lengths) == 4
    assert [decay_start(n) for n in lengths] == [16, 32, 64]
    assert [rate_share(t, lengths, None) for t in (1, 2, 4, 5, 64)] == [0.25, 0.5, 1, 1, 1]
    assert [rate_share(t, lengths, 40) for t in (33, 37, 40)] == [1, 0.5, 0.125]


@pytest.mark.parametrize("name", STUDIES)
def test_arms_have_equal_parameters_and_every_pair_exists(name: str):
    study = STUDIES[name]
    base = study.model(config.SHAPES["bytes-0.3m"])
    counts = {}
    for arm in study.arms:
        if arm.flops_of:
            continue  # of equal cost, see test_study_arms.py
        cfg = arm.model(base)
        specs = cfg.activation_fn.specs_at(cfg.hidden_width)
        coefficients = sum(spec.size for spec in specs.values()) * cfg.num_layers
        counts.setdefault((arm.width, arm.depth), set()).add(
            models.count_active_params(cfg) - coefficients
        )
        arm.optimizer(OptimConfig())
    assert all(len(found) == 1 for found in counts.values()), counts
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names)
    for pair in study.pairs:
        assert {study.arm(one).name for one in pair} == set(pair)
    assert name == "moe" or len(study.arms) >= 4


def test_a_study_can_be_cut_down_to_some_arms():
    study = STUDIES["activations"].only(["poly_norm", "swiglu", "relu"])
    assert [arm.name for arm in study.arms] == ["swiglu", "relu", "poly_norm"]
    assert study.pairs == (("relu", "swiglu"), ("poly_norm", "swiglu"))


@pytest.mark.parametrize("preset", ["dense-1b", "moe-1b-7b"])
def test_an_arm_that_decays_coefficients_departs_in_nothing_else(preset: str):
    base = recipe(preset).optim  # the mixture's has norms that decay, and they stay
    decayed = STUDIES["coefficients"].arm("decayed").optimizer(base)
    assert decayed == replace(base, decay_roles=(*base.decay_roles, "coefficient"))
    assert decayed.weight_decay == 0.1
    assert STUDIES["coefficients"].arm("poly_norm").optimizer(base) == base


def test_width_and_depth_scale_the_model():
    arm = Arm("big", "relu", width=Fraction(2), depth=Fraction(1, 2))
    cfg = arm.model(config.SHAPES["bytes-0.8m"])
    assert (cfg.embed_dim, cfg.num_heads, cfg.gated_width, cfg.num_layers) == (256, 8, 688, 2)


def test_a_mixture_has_the_same_active_weights():
    base = config.SHAPES["bytes-0.8m"]
    mixture = mixture_of(base)
    assert mixture.moe.top_k * mixture.gated_width == base.gated_width


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["activation"], "Did you mean 'activations'"),
        (["order", "--scale", "huge"], "quick"),
        (["order", "--seeds", "1"], "at least 2"),
        (["order", "--arms", "poly_norm"], "Did you mean 'poly_norm_"),
        (["order", "--arms", "poly_norm_2", "poly_norm_3"], "compares with swiglu"),
        (["order", "--learning-rates", "0.1", "0.2"], "four or more"),
        (["order", "--sedes", "1"], "Did you mean"),
        (["rows", "--quick", "--arms", "swiglu", "gdn"], "This model has no arm gdn"),
        (["scaling", "--quick", "--arms", "swiglu", "poly_norm", "gdn"], "model has no arm gdn"),
    ],
)
def test_misuse_is_told_in_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)  # where a study that is begun has its folder
    monkeypatch.setattr(comparing, "prepare", lambda *args, **how: pytest.fail("data is prepared"))
    assert compare.main(words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
