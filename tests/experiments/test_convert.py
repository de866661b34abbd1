"""`experiments.convert` and `experiments.evaluate`, end to end on a run of seconds."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import run_config
from etils import epath
from shapes import SMALL

from experiments import generate
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.pretrain import __main__ as pretrain
from experiments.run.folder import Workdir
from experiments.run.hf_tokenizer import save_tokenizer
from experiments.run.metrics import read_metrics
from experiments.run.model_loading import Model, load_model
from polycom_jax import InputError, models
from polycom_jax.data import ByteTokenizer, DataConfig
from polycom_jax.interop import huggingface

pytestmark = pytest.mark.slow  # runs, converted and continued

MODEL = replace(SMALL, vocab_size=257, activation="swiglu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a Llama of random weights that reads bytes."""
    path = tmp_path_factory.mktemp("convert") / "llama"
    params = models.init(MODEL, jax.random.key(0))
    ffn = params["layers"][0]["ffn"]
    ffn |= {name: 10 * ffn[name] for name in ("w_gate", "w_down")}  # so that activations matter
    huggingface.save(path, MODEL, params, end_of_text=256)
    save_tokenizer(path, ByteTokenizer(), context_length=32)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, settings: Path) -> Path:
    """The folder as a run at step 0."""
    workdir = folder.parent / "run"
    words = ["--config", str(settings_without_model(settings)), "--workdir", str(workdir)]
    assert convert.main([str(folder), *words]) == 0
    return workdir


def settings_without_model(settings: Path) -> Path:
    """The file without what a source says by itself."""
    lines = settings.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("optim"))
    path = settings.with_name("no-model.yaml")
    path.write_text("\n".join(lines[start:]).replace("tokenizer: bytes, ", ""))
    return path


def measured(folder: Path, *words: str) -> list[dict]:
    out = folder.parent / "numbers.json"
    assert evaluate.main([str(folder), "--json", str(out), *words]) == 0
    return json.loads(out.read_text())["results"]


def little(settings: Path) -> str:
    return str(settings.with_name("little.txt"))


def test_a_folder_becomes_a_run_and_a_folder_again(folder, run, tmp_path):
    assert convert.main([str(run), "--out", str(tmp_path / "again")]) == 0
    there, middle, back = (load_model(path) for path in (folder, run, tmp_path / "again"))
    assert there.cfg == middle.cfg == back.cfg == MODEL
    for other in (middle, back):
        jax.tree.map(np.testing.assert_array_equal, other.params, there.params)
    for model in (there, middle, back):
        assert model.tokenizer is not None
        assert model.tokenizer.eot == 256
        assert model.tokenizer.encode("fox ✓\n").tolist() == list("fox ✓\n".encode())
    stored = json.loads((tmp_path / "again" / "config.json").read_text())
    assert stored["model_type"] == "llama"
    assert stored["eos_token_id"] == 256
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (folder / weights).read_bytes()


def test_an_apertus_becomes_a_run_that_trains_and_an_apertus_again(settings, tmp_path):
    scaling = models.RopeScaling(8.0, original_context_length=16)
    cfg = replace(MODEL, activation="xielu", qk_norm="head", rope_scaling=scaling)
    folder, run, again = (str(tmp_path / name) for name in ("apertus", "run", "again"))
    huggingface.save(folder, cfg, models.init(cfg, jax.random.key(0)), end_of_text=256)
    save_tokenizer(Path(folder), ByteTokenizer(), context_length=32)
    words = ["--config", str(settings_without_model(settings)), "--workdir", run]
    assert convert.main([folder, *words]) == 0
    assert Workdir(run).read_config().model == cfg
    assert generate.main([run, "--greedy", "--max-new-tokens", "24"]) == 0
    assert convert.main([run, "--out", again]) == 0
    first, second = (Path(path) / "model.safetensors" for path in (folder, again))
    assert first.read_bytes() == second.read_bytes()
    assert json.loads((Path(again) / "config.json").read_text())["model_type"] == "apertus"
    assert pretrain.main(["--config", str(Path(run) / "config.yaml"), "--workdir", run]) == 0
    before, after = (load_model(Path(path)).params["layers"][0]["ffn"] for path in (folder, run))
    for name in ("alpha_p", "alpha_n"):
        assert np.all(before["activation"][name] != after["activation"][name])


@pytest.mark.filterwarnings("default")  # theirs are not ours to mend
@pytest.mark.usefixtures("own_modules")
def test_pytorch_writes_the_same_text(settings, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    whole, target = str(tmp_path / "run"), str(tmp_path / "exported")
    assert pretrain.main(["--config", str(settings), "--workdir", whole]) == 0
    assert convert.main([whole, "--out", target]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True)
    assert model.config.polycom["activation"] == "poly_norm"
    tokenizer = transformers.AutoTokenizer.from_pretrained(target, trust_remote_code=True)
    for prompt in ("The 7th quick", "jumps", ""):
        capsys.readouterr()
        words = [whole, "--greedy", "--prompt", prompt, "--max-new-tokens", "16"]
        assert generate.main(words) == 0
        written = capsys.readouterr().out
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            found = model.generate(**ids, do_sample=False, max_new_tokens=16, pad_token_id=0)
        assert tokenizer.decode(found[0], skip_special_tokens=True) + "\n" == written
        assert len(written) > len(prompt) + 10


def test_all_of_a_text_in_overlapping_windows(folder, settings, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("Pack my box with five dozen liquor jugs.\n" * 40)
    words = ("--data", little(settings), str(other), "--split", "all")
    sliding = measured(folder, *words, "--windows", "sliding", "--stride", "8")
    packed = measured(folder, *words)
    for found, plain, path in zip(sliding, packed, words[1:3], strict=True):
        assert found["data"] == path
        assert found["bytes"] == plain["bytes"] == len(Path(path).read_bytes())
        assert found["tokens"] == plain["tokens"] == found["bytes"] + found["documents"]
        assert found["loss"] != plain["loss"]
        bits = found["loss"] * found["tokens"] / math.log(2) / found["bytes"]
        assert found["bits_per_byte"] == pytest.approx(bits)
    assert "sliding windows of 32 tokens, one every 8" in " ".join(capsys.readouterr().out.split())


def test_a_swapped_model_is_a_run_that_goes_on(run, settings, capsys):
    swapped = run.parent / "swapped"
    words = [str(run), "--config", str(settings_without_model(settings)), "--fit-batches", "2"]
    words += ["--workdir", str(swapped), "--activation", "poly_norm"]
    assert convert.main(words) == 0
    cfg = Workdir(swapped).read_config()
    assert cfg.model == replace(MODEL, activation="poly_norm_glu")
    assert (cfg.run.steps, cfg.optim.warmup_steps) == (6, 2)
    words = ["--config", str(swapped / "config.yaml"), "--workdir", str(swapped)]
    assert pretrain.main(words) == 0
    assert "resumed from the checkpoint of step 0" in capsys.readouterr().out
    last = read_metrics(swapped / "metrics.jsonl")[-1]
    assert last["step"] == 6
    assert generate.main([str(swapped), "--greedy", "--max-new-tokens", "5"]) == 0
    # What is evaluated is just what the run held out.
    (found,) = measured(swapped, "--data", little(settings))
    assert found["loss"] == pytest.approx(last["heldout_loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)


def test_a_run_of_weights_brought_in_may_be_given_other_eval_tokens_until_it_trains(
    run, settings, tmp_path, capsys
):
    workdir = str(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock")))
    assert pretrain.main([workdir, "--run.eval-tokens", "64"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "changed: run.eval_tokens None -> 64 (nothing is evaluated yet)" in told
    assert Workdir(workdir).read_config().run.eval_tokens == 64
    assert pretrain.main([workdir, "--steps", "7", "--run.eval-tokens", "32"]) == 2
    assert "run.eval_tokens: 64 there, 32 now" in capsys.readouterr().err


def test_a_run_of_weights_brought_in_knows_whose_they_are_and_of_which_function(
    folder, run, tmp_path, capsys
):
    assert Workdir(run).record()["weights_from"] == str(folder)
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("activation: swiglu", "activation: geglu"))
    assert generate.main([str(copy), "--greedy", "--max-new-tokens", "5"]) == 2
    said = capsys.readouterr().err
    assert "model.activation: 'swiglu' there, 'geglu' now" in said
    assert said.count("\n") == 1


def test_a_tokenizer_of_more_ids_than_the_weights_have_is_refused_with_what_to_do(
    folder, settings, tmp_path, capsys
):
    import tokenizers

    model, target = shutil.copytree(folder, tmp_path / "model"), str(tmp_path / "run")
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens([f"<{n}>" for n in range(9)])
    tokenizer.save(str(model / "tokenizer.json"))
    words = ["--config", str(settings_without_model(settings)), "--workdir", target]
    assert convert.main([str(model), *words]) == 2
    assert (
        "in have the size of their own model's tokenizer: give that one." in capsys.readouterr().err
    )


def test_the_swap_shows_the_loss_before_and_after(folder, settings, tmp_path, capsys):
    target = tmp_path / "poly"
    words = [str(folder), "--config", str(settings_without_model(settings)), "--fit-batches", "2"]
    words += ["--out", str(target), "--activation", "poly_norm"]
    assert convert.main(words) == 0
    shown = capsys.readouterr().out
    before, after = (
        float(shown.split(f"held-out loss {when}, {name}: ")[1].split()[0])
        for when, name in (("before", "swiglu"), ("after", "poly_norm_glu"))
    )
    assert before != after
    assert abs(before - after) < 0.2
    assert "explained" in shown
    assert load_model(target).cfg == replace(MODEL, activation="poly_norm_glu")


def test_a_text_of_one_document_is_evaluated_as_a_whole(folder, tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("Pack my box with five dozen liquor jugs.\n")
    assert evaluate.main([str(folder), "--data", str(text)]) == 2
    assert "--split all" in capsys.readouterr().err
    (found,) = measured(folder, "--data", str(text), "--split", "all")
    assert (found["documents"], found["bytes"]) == (1, 41)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN_OR_FOLDER is missing"),
        (["RUN"], "Nothing to write"),
        (["nowhere", "--out", "NEW"], "neither a run"),
        (
            ["RUN", "--out", "NEW", "--dtype", "int8"],
            "--dtype: got 'int8', expected one of float32, bfloat16, float16, None",
        ),
        (["RUN", "--workdir", "NEW", "--dtype", "float16"], "--dtype is of --out"),
        (["RUN", "--workdir", "RUN"], "holds a run already"),
        (["RUN", "--workdir", "NEW", "--run.init-from", "RUN"], "give --run.init-from None"),
        (["RUN", "--workdir", "NEW", "--out", "NEW"], "--out and --workdir are both"),
        (["RUN", "--workdir", "NEW", "--run.dry-run"], "convert writes what it is asked for"),
        (["RUN", "--workdir", "NEW", "--run.profile-steps", "90001:90002"], "begins behind"),
        (["RUN", "--out", "RUN"], "holds config.yaml and tokenizer.json already"),
        (["RUN", "--out", "NEW", "--fit-batches", "0"], "fit_batches=0"),
        (
            ["RUN", "--out", "NEW", "--model.embed-dim", "8"],
            "embed_dim: the source says what",
        ),
        (["RUN", "--out", "NEW", "--activation", "relu2"], "no gated form"),
        (["RUN", "--out", "NEW", "--data.tokenizer", "bpe"], "has its own"),
        (["RUN", "--out"], "--out takes a value"),
    ],
)
def test_bad_commands_end_in_one_line(words: list[str], message: str, run, tmp_path, capsys):
    places = {"RUN": str(run), "NEW": str(tmp_path / "new")}
    assert convert.main([places.get(word, word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stride", "4"], "goes with windows='sliding'"),
        (["--tokenizer", "bytes"], "has its own"),
        (["--seq-len", "8", "--windows", "sliding", "--stride", "9"], "from 1 to seq_len=8"),
    ],
)
def test_bad_evaluations_end_in_one_line(words, message, run, capsys):
    assert evaluate.main([str(run), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_model_in_float16_wants_a_scaled_loss_only_of_a_run(tmp_path: Path):
    cfg = replace(MODEL, dtype="float16")
    params = jax.eval_shape(lambda: models.init(cfg, jax.random.key(0)))
    model = Model(cfg, params, ByteTokenizer(), DataConfig(), epath.Path(tmp_path), 3)
    config, _ = run_config([])
    planned, _ = convert.plan(config, frozenset(), model)
    assert planned.model == cfg
    with pytest.raises(InputError, match=r"take optim\.loss_scaling=dynamic"):
        convert.plan(config, frozenset({"workdir"}), model)
