"""`experiments.generate`: text from a finished run, and what it refuses."""

import json
from pathlib import Path

import pytest
from commands import copied

from experiments import generate
from experiments.run.folder import Workdir
from polycom_jax.data.tokenizers import train_bpe
from polycom_jax.interop.huggingface import Generation


def test_generate_writes_and_repeats_itself(whole: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(whole), "--prompt", "The ", "--max-new-tokens", "8"]
    outputs = []
    for extra in ([], [], ["--seed", "1"], ["--checkpoint", "best"]):
        assert generate.main([*words, *extra]) == 0
        outputs.append(capsys.readouterr().out)
    assert all(output.startswith("The ") for output in outputs)
    assert outputs[0] == outputs[1] == outputs[3]
    assert outputs[0] != outputs[2]


def test_generate_needs_neither_the_text_nor_the_cache(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("POLYCOM_CACHE", "/dev/null")
    words = [str(copied(whole, tmp_path / "w")), "--max-new-tokens", "3"]
    assert generate.main([*words, "--prompt", "The "]) == 0
    assert capsys.readouterr().out.startswith("The ")


@pytest.mark.parametrize("text", [None, "{}", '{"type": "bits"}'])
def test_generate_refuses_another_tokenizer(
    whole: Path, tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
):
    workdir = copied(whole, tmp_path / "w")
    file = workdir / "tokenizer.json"
    file.unlink() if text is None else file.write_text(text)
    assert generate.main([str(workdir)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert error.count("\n") == 1


def test_generate_refuses_a_tokenizer_of_another_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = copied(whole, tmp_path / "w")
    train_bpe(iter(["some text"]), 300, workdir / "tokenizer.json")
    assert generate.main([str(workdir)]) == 2
    assert "is not the tokenizer that the run in" in capsys.readouterr().err


def test_greedy_samples_are_all_alike(whole: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(whole), "--max-new-tokens", "8", "--greedy"]
    assert generate.main([*words, "--num-samples", "3"]) == 0
    texts = capsys.readouterr().out.split(f"\n{'-' * 40}\n")
    assert len(texts) == 3
    assert len({text.strip() for text in texts}) == 1


def test_a_text_ends_at_what_the_model_it_was_made_from_ends_texts_with(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = copied(whole, tmp_path / "w")
    Workdir(workdir).write_generation(Generation({"eos_token_id": list(range(256))}))
    words = [str(workdir), "--prompt", "The ", "--max-new-tokens", "8", "--greedy"]
    assert generate.main(words) == 0
    assert capsys.readouterr().out == "The \n"


def test_json_of_generate_on_stdout_is_all_that_is_there(
    whole: Path, capsys: pytest.CaptureFixture[str]
):
    words = [str(whole), "--max-new-tokens", "4", "--num-samples", "2", "--json", "-"]
    assert generate.main([*words, "--prompt", "-x"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["prompt"], len(found["texts"])) == (str(whole), "-x", 2)


def test_generate_says_when_a_text_is_longer_than_the_models_context(
    whole: Path, capsys: pytest.CaptureFixture[str]
):
    words = [str(whole), "--prompt", "é" * 15, "--max-new-tokens", "8", "--greedy"]
    assert generate.main(words) == 0
    assert "39 tokens are longer than the 32 that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "nowhere"], "There is no run in nowhere"),
        (["--checkpoint", "5"], "no checkpoint of step 5"),
        (["--checkpoint", "newest"], "must be 'latest', 'best' or a step"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--max-new-tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--promt", "x"], "Did you mean '--prompt'"),
    ],
)
def test_generate_tells_what_is_wrong_in_one_line(
    whole: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert generate.main([str(whole), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
