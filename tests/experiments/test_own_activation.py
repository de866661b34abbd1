"""A file outside the repository through the programs: trained, resumed, compared, refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from experiments import generate
from experiments.activations import __main__ as activations
from experiments.compare import __main__ as compare
from experiments.pretrain import __main__ as pretrain
from experiments.run.folder import Workdir
from polycom_jax.training import metadata

Run = Callable[..., int]

TEXT = """
import jax
import polycom_jax as pc

def leaky_swish(x, beta, leak):
    return x * (jax.nn.sigmoid(beta * x) + leak)

act = pc.activation(leaky_swish, {"beta": 1.0, "leak": pc.Parameter(0.05, per="channel")})
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path, run: Run) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(place / "w", "--activation", "mine.py:act", "--steps", "4") == 0
    return place / "w"


def test_config_and_checkpoint_have_the_hash_and_the_folder_a_copy(trained: Path):
    stored = yaml.safe_load((trained / "config.yaml").read_text())["model"]["activation"]
    assert stored.startswith("mine.py:act#sha256=")
    about = metadata.read(Workdir(trained).checkpoints / "4").run_metadata
    assert about["model.activation"] == f"act#{stored.partition('#')[2]}"
    assert (trained / "activation.py").read_text() == TEXT
    assert (trained / "plots" / "activations.png").is_file()


def test_a_run_resumes_and_is_sampled_while_the_file_is_there(
    trained: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(place)
    assert pretrain.main([str(trained), "--steps", "6"]) == 0
    assert generate.main([str(trained), "--max-new-tokens", "3"]) == 0
    assert "leaky_swish is imported from mine.py, SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_it_is_refused_by_name_when_the_file_is_gone_or_differs(
    trained: Path,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
):
    # Another process has not imported the file.
    monkeypatch.setattr("polycom_jax.reference._LOADED", {})
    monkeypatch.chdir(tmp_path)
    if change == "changed":
        (tmp_path / "mine.py").write_text(TEXT + "# changed\n")
    for program, words in ((generate.main, []), (pretrain.main, ["--steps", "8"])):
        assert program([str(trained), *words]) == 2
        error = capsys.readouterr().err
        said = "is not there" if change == "gone" else "is another file than the model"
        assert f"mine.py {said}" in error
        assert f"What the run began with is kept as {trained / 'activation.py'}" in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_moved_file_goes_on_where_the_config_says_where_it_is(
    trained: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("polycom_jax.reference._LOADED", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.py").write_text(TEXT)
    config = trained / "config.yaml"
    kept = config.read_text()
    config.write_text(kept.replace("mine.py:act#", "new.py:act#"))
    assert pretrain.main([str(trained), "--steps", "8"]) == 0
    config.write_text(kept)


@pytest.mark.slow
def test_another_activation_is_another_run(
    trained: Path,
    place: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(place)
    (place / "other.py").write_text(TEXT.replace("0.05", "0.06"))
    assert run(trained, "--activation", "other.py:act", "--steps", "9") == 2
    assert "holds a run with other settings (model.activation" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_takes_it_as_a_further_arm(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    words = ["activations", "--arms", "swiglu", "leaky_swish", "--activation", "mine.py:act"]
    small = ["--steps", "8", "--seeds", "2", "--seq-len", "16", "--heldout-tokens", "128"]
    assert compare.main([*words, "--quick", *small, "--out", "study"]) == 0
    results = json.loads((place / "study" / "results.json").read_text())
    assert "leaky_swish" in json.dumps(results)
    folders = [path.name for path in (place / "study" / "runs").iterdir()]
    assert sorted(name.partition("-")[0] for name in folders) == ["leaky_swish", "swiglu"]
    assert any("-" in name for name in folders)
    told = (place / "study" / "report.md").read_text()
    assert compare.main(["report", "study"]) == 0
    assert (place / "study" / "report.md").read_text() == told
    assert compare.main(["leaderboard", "study"]) == 0
    assert "leaky_swish-" in (place / "study" / "leaderboard.md").read_text()
    few = ["--steps", "8", "--seeds", "1", "--seq-len", "16", "--heldout-tokens", "128"]
    words = ["transfer", "--activations", "mine.py:act", *few, "--out", "transfer"]
    assert compare.main([*words, "--widths", "32", "64"]) == 0
    assert "| leaky_swish | 64 | mup |" in (place / "transfer" / "transfer.md").read_text()


@pytest.mark.slow
def test_the_table_is_printed_drawn_and_timed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    small = ["--rounds", "1", "--embed-dim", "16", "--gated-width", "16", "--tokens", "16"]
    words = ["mine.py:act", "poly_norm", "swiglu_oai", *small, "--out", "t", "--json", "-"]
    assert activations.main(words) == 0
    found = json.loads(capsys.readouterr().out)["activations"]
    assert list(found) == ["leaky_swish", "poly_norm", "swiglu_oai"]
    assert found["leaky_swish"]["learns"]["leak"] == {
        **{"start": [pytest.approx(0.05)], "per": "channel", "groups": 1, "role": "coefficient"}
    }
    assert found["poly_norm"]["reads"] == "rows"
    assert found["swiglu_oai"]["cost"]["width"] == 16
    assert (place / "t" / "plots" / "curves.png").is_file()
    assert "| poly_norm |" in (place / "t" / "report.md").read_text()


def test_what_breaks_the_contract_ends_the_program(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    (place / "naive.py").write_text(
        "import jax.numpy as jnp\nimport polycom_jax as pc\n"
        "act = pc.activation(lambda x: x * jnp.exp(x) / (1 + jnp.exp(x)), name='naive')\n"
    )
    assert activations.main(["naive.py:act", "--check", "--cost", "False", "--out", "n"]) == 2
    error = capsys.readouterr().err
    assert "contract: naive: " in error
    assert error.count("\n") == 1
