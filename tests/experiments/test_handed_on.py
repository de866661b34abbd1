"""What a Hugging Face folder says of a text's beginning and end, through every program."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import TINY

from experiments import generate
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.run.folder import Workdir
from experiments.run.hf_tokenizer import generation_of, save_tokenizer
from experiments.run.model_loading import load_model, load_trained
from experiments.run.sampling import Sampling, complete
from polycom_jax import models
from polycom_jax._errors import InputWarning
from polycom_jax.data import FileTokenizer
from polycom_jax.interop import huggingface
from polycom_jax.sharding import make_mesh
from polycom_jax.training import Checkpoints, state_from

B, E, OTHER = "<|begin|>", "<|ends: here|>", "<|ends too|>"
MODEL = replace(TINY, vocab_size=290, activation="swiglu", document_mask=False)
ABOUT = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": B, "eos_token": E}
BESIDE: dict[str, Any] = {
    "tokenizer_config": ABOUT | {"chat_template": "{{ messages }}", "model_max_length": 99},
    "special_tokens_map": {"bos_token": B, "eos_token": E},
    "generation_config": {"eos_token_id": [1, 2], "temperature": 0.6, "do_sample": True},
}
TEXT = [f"The {n}th river walks slowly under the old tree.\n" for n in range(400)]


def write_tokenizer(path: Path, special: tuple[str, ...] = (B, E, OTHER), post: str = "template"):
    """A byte-level BPE of 290 ids as other people's models have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(TEXT, trainer)
    if post == "template":
        model.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
        )
    elif post == "bytes":
        model.post_processor = processors.ByteLevel(trim_offsets=False)
    model.save(str(path))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with all that may lie beside it."""
    path = tmp_path_factory.mktemp("given") / "llama"
    params = models.init(MODEL, jax.random.key(0))
    params = jax.tree.map(lambda x: x * 3, params)
    ids = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": None}
    said = huggingface.Generation(ids, BESIDE["generation_config"])
    huggingface.save(path, MODEL, params, generation=said)
    write_tokenizer(path / "tokenizer.json")
    for name in ("tokenizer_config", "special_tokens_map"):
        (path / f"{name}.json").write_text(json.dumps(BESIDE[name]))
    (path / "chat_template.jinja").write_text("{% for message in messages %}")
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    path = folder.parent / "text.txt"
    path.write_text("".join(TEXT))
    return path


@pytest.fixture(scope="module")
def run(folder: Path, text: Path) -> Path:
    """The folder as a run at step 0."""
    path = folder.parent / "run"
    words = [str(folder), "--workdir", str(path), "--data", str(text)]
    words += ["--data.document-bytes", "1000", "--steps", "2", "--batch-size", "8"]
    assert convert.main([*words, "--optim.warmup-steps", "1"]) == 0
    return path


def same_but_weights(one: Path, other: Path) -> None:
    """All small files alike: config.json as JSON, others byte for byte."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names - {"config.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (json.loads((path / "config.json").read_text()) for path in (one, other))
    assert first == second


@pytest.mark.parametrize("post", ["template", "none"])
def test_a_folder_is_copied_with_all_that_lies_beside_it(post, folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    write_tokenizer(source / "tokenizer.json", post=post)
    assert convert.main([str(source), "--out", str(tmp_path / "new")]) == 0
    same_but_weights(source, tmp_path / "new")
    weights = "model.safetensors"
    assert (tmp_path / "new" / weights).read_bytes() == (source / weights).read_bytes()


def test_a_folder_is_written_in_the_dtype_that_is_asked_for(folder, tmp_path):
    words = [str(folder), "--out", str(tmp_path / "new"), "--dtype", "bfloat16"]
    assert convert.main(words) == 0
    old, new = (load_model(path) for path in (folder, tmp_path / "new"))
    about = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (about["dtype"], new.cfg) == ("bfloat16", old.cfg)  # it is computed with as it was
    for name in ("embed", "final_norm"):
        rounded = old.params[name].astype(jnp.bfloat16).astype(jnp.float32)
        wanted = old.params[name] if name == "final_norm" else rounded
        np.testing.assert_array_equal(new.params[name], wanted)


@pytest.mark.slow
def test_a_run_of_a_folder_keeps_all_that_lay_beside_it(folder, run, tmp_path):
    assert convert.main([str(run), "--out", str(tmp_path / "new")]) == 0
    same_but_weights(folder, tmp_path / "new")


def test_modes_follow_the_umask(folder, tmp_path):
    before = os.umask(0o022)
    try:
        assert convert.main([str(folder), "--out", str(tmp_path / "new")]) == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o644}


def test_a_target_that_is_taken_is_told_before_the_work(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convert, "load_model", None)  # never gets there
    (tmp_path / "config.json").write_text("{}")
    assert convert.main([str(folder), "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "config.json already" in shown
    assert shown.count("\n") == 1


def test_a_target_under_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert convert.main([str(folder), "--out=~/out"]) == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_run_that_cannot_begin_leaves_nothing(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("")
    words = [str(folder), "--workdir", str(tmp_path / "run")]
    assert convert.main([*words, "--data", str(tmp_path / "text.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not [path for path in (tmp_path / "run").glob("*") if "lock" not in path.name]


@pytest.mark.parametrize("name", ["config", "generation_config", "tokenizer_config"])
@pytest.mark.parametrize("content", ['{"eos_token_id": ', '{"eos_token_id": "x", "eos_token": 3}'])
def test_files_edited_by_hand_end_in_one_line(name, content, folder, tmp_path, capsys):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / f"{name}.json").write_text(content)
    target = tmp_path / "new"
    assert convert.main([str(tmp_path), "--out", str(target)]) == 2
    shown = capsys.readouterr().err
    assert f"{name}.json" in shown or "eos_token_id" in shown
    assert shown.count("\n") == 1
    assert not target.exists()


def test_what_nobody_reads_is_told_in_a_line(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"logit_scale": 0.5}))
    words = [str(tmp_path), "--out", str(tmp_path / "new")]
    with pytest.warns(InputWarning, match="logit_scale='0.5'") as told:
        assert convert.main(words) == 0
    line = warnings.formatwarning(told[0].message, told[0].category, "here.py", 1)
    assert line.startswith("warning: config.json: logit_scale")
    assert line.count("\n") == 1


@pytest.mark.slow
def test_generate_begins_a_prompt_as_the_tokenizer_does(folder, run, capsys):
    trained = load_trained(Workdir(run))
    tokenizer = trained.tokenizer
    assert (tokenizer.begin, tokenizer.eot, trained.ends) == ((0,), 1, (1, 2))
    capsys.readouterr()
    words = [str(run), "--prompt", "The old", "--greedy", "--max-new-tokens", "9"]
    assert generate.main(words) == 0
    cfg, params = huggingface.load(folder)
    ids = [0, *tokenizer.encode("The old").tolist()]
    for _ in range(9):
        ids.append(int(models.forward(cfg, params, jnp.array([ids]))[0, -1].argmax()))
        if ids[-1] in (1, 2):
            break
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"


def test_a_text_ends_at_any_of_its_ends(folder):
    model = load_model(folder)
    assert model.tokenizer is not None
    how = Sampling(max_new_tokens=12, temperature=0.0)
    prompt = "a river"
    (whole,) = complete(MODEL, model.params, model.tokenizer, prompt, how)
    assert whole.startswith(prompt)
    assert len(whole) > len(prompt)
    ends = range(MODEL.vocab_size)
    assert complete(MODEL, model.params, model.tokenizer, prompt, how, ends=ends) == [prompt]
    # What leaves one token to draw leaves the most probable one.
    for drawn in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5, "top_p": None}):
        one = replace(how, **{"temperature": 1.0, **drawn})
        assert complete(MODEL, model.params, model.tokenizer, prompt, one) == [whole]
    # It goes on from what the tokenizer begins a text with, in one uncached pass.
    ids = [0, *model.tokenizer.encode(prompt).tolist()]
    forward = jax.jit(models.forward, static_argnums=0)
    best = forward(MODEL, model.params, jnp.array([ids]))[0, -1].argmax()
    assert whole.startswith(model.tokenizer.decode([*ids, int(best)]))


@pytest.mark.slow
def test_a_folder_that_does_not_say_what_ends_a_text_is_told(folder, text, tmp_path, capsys):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = [str(tmp_path), "--data", str(text), "--split", "all"]
    assert evaluate.main(asked) == 2
    assert "no end-of-text token" in capsys.readouterr().err
    assert evaluate.main([*asked, "--end-of-text", E]) == 0
    words = [str(tmp_path), "--out", str(tmp_path / "new")]
    assert convert.main([*words, "--data.end-of-text", E]) == 0
    assert FileTokenizer(tmp_path / "new" / "tokenizer.json").eot == 1
    assert evaluate.main([str(tmp_path / "new"), *asked[1:]]) == 0


@pytest.mark.slow
def test_evaluation_puts_the_beginning_before_each_document(folder, tmp_path):
    documents = ["The old tree.", "A river walks, slowly, under it."]
    lines = "".join(json.dumps({"text": one}) + "\n" for one in documents)
    (tmp_path / "two.jsonl").write_text(lines)
    words = [str(folder), "--data", str(tmp_path / "two.jsonl"), "--split", "all"]
    assert evaluate.main([*words, "--seq-len", "64", "--json", str(tmp_path / "n.json")]) == 0
    (found,) = json.loads((tmp_path / "n.json").read_text())["results"]
    cfg, params = huggingface.load(folder)
    tokenizer = FileTokenizer(folder / "tokenizer.json")
    nats, given = [], []
    stream: list[int] = []
    for one in documents:
        given.append(len(stream))
        stream += [0, *tokenizer.encode(one).tolist(), 1]
    logits = np.asarray(models.forward(cfg, params, jnp.array([stream[:-1]])), np.float64)[0]
    for place, token in enumerate(stream[1:], 1):
        if place not in given:
            row = logits[place - 1]
            nats.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[token])
    assert found["tokens"] == len(nats)
    assert found["loss"] == pytest.approx(np.mean(nats), rel=1e-5)


@pytest.mark.parametrize("post", ["none", "bytes"])
def test_an_exported_tokenizer_gives_the_ids_of_training(post, tmp_path):
    import tokenizers

    (tmp_path / "new").mkdir()
    write_tokenizer(tmp_path / "tokenizer.json", ("<|endoftext|>",), post)
    ours = FileTokenizer(tmp_path / "tokenizer.json")
    save_tokenizer(tmp_path / "new", ours, context_length=8)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    expected = [0, *ours.encode("a river").tolist()]
    assert theirs.encode("a river").ids == expected
    assert theirs.decode(expected) == "a river"
    about = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert about["bos_token"] == about["eos_token"] == "<|endoftext|>"
    assert generation_of(ours).ids["bos_token_id"] == generation_of(ours).ids["eos_token_id"] == 0
    back = FileTokenizer(tmp_path / "new" / "tokenizer.json")
    assert (back.begin, back.eot) == (ours.begin, ours.eot)


def test_a_tokenizer_with_its_own_beginning_keeps_it(tmp_path):
    (tmp_path / "new").mkdir()
    write_tokenizer(tmp_path / "tokenizer.json", ("<s>", "</s>"))
    ours = FileTokenizer(tmp_path / "tokenizer.json")
    save_tokenizer(tmp_path / "new", ours, context_length=8)
    about = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert (about["bos_token"], about["eos_token"]) == ("<s>", "</s>")
    assert generation_of(ours).ids == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    assert FileTokenizer(tmp_path / "new" / "tokenizer.json").begin == (0,)


def test_where_others_trained_nothing_is_put_before_a_text(tmp_path):
    import tokenizers

    for as_trained, begin in ((False, ()), (True, (1,))):
        source, target = (tmp_path / f"{name}{as_trained}" for name in ("old", "new"))
        source.mkdir()
        target.mkdir()
        write_tokenizer(source / "tokenizer.json", post="none")
        about = ABOUT | {"tokenizer_class": "GPT2Tokenizer", "bos_token": None}
        (source / "tokenizer_config.json").write_text(json.dumps(about))
        ours = FileTokenizer(source / "tokenizer.json")
        save_tokenizer(target, ours, context_length=8, as_trained=as_trained)
        theirs = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
        assert tuple(theirs.encode("").ids) == begin
        found = json.loads((target / "tokenizer_config.json").read_text())
        expected = about | {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": E}
        assert found == (expected if as_trained else about)


@pytest.mark.slow
def test_a_run_of_nan_is_refused_by_every_program(folder, text, tmp_path, capsys):
    source = load_model(folder)
    words = [str(folder), "--workdir", str(tmp_path / "run"), "--data", str(text)]
    words += ["--data.document-bytes", "1000", "--steps", "2", "--optim.warmup-steps", "1"]
    assert convert.main([*words, "--batch-size", "8"]) == 0
    workdir = Workdir(tmp_path / "run")
    config = workdir.read_config()
    params = source.params | {"final_norm": source.params["final_norm"].at[3].set(jnp.nan)}
    mesh = make_mesh(devices=jax.devices()[:1])
    shutil.rmtree(workdir.checkpoints)
    with Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(0, state_from(config.model, config.optim, params, mesh))
    for program, words in (
        (generate, [str(tmp_path / "run")]),
        (evaluate, [str(tmp_path / "run"), "--data", str(text)]),
        (convert, [str(tmp_path / "run"), "--out", str(tmp_path / "new")]),
    ):
        capsys.readouterr()
        assert program.main(words) == 2
        assert "final_norm holds numbers that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
