"""Against the harness's own `hf` backend, where it and PyTorch are installed (extra `eval`)."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from shapes import SMALL

from experiments.run.hf_tokenizer import save_tokenizer
from polycom_jax import InputError, models
from polycom_jax.data import ByteTokenizer
from polycom_jax.interop import huggingface
from polycom_jax.interop.lm_eval import language_model
from polycom_jax.interop.lm_eval.scoring import Pair, Score
from polycom_jax.models import ModelConfig
from polycom_jax.sharding import make_mesh

lm_eval: Any = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed (extra eval)"
)
pytest.importorskip("torch", reason="PyTorch is not installed (extra eval)")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend
pytestmark = [
    pytest.mark.filterwarnings("default"),  # theirs are not ours to mend
    pytest.mark.usefixtures("own_modules"),
]
NATS = 1e-3
"""Sums of some 60 float32 log-probabilities of order 5; each side adds in another order."""

CFG = replace(SMALL, vocab_size=257, num_kv_heads=1, context_length=64)
SUBJECTS = ("The fox", "A dog that barks all night", "Nobody", "She", "The old lady")
QUESTIONS = [
    {
        "question": f"{subject} jumped over {n} fences. " * (1 + n % 3)
        + "Who was it?"
        + " " * (n % 2),
        "choices": [f"{other}, {n}" for other in SUBJECTS[: 2 + n % 3]],
        "label": n % 2,
        "text": f"{subject} jumped over {n} fences.\n" * (1 + n % 4),
        "answer": "e",
    }
    for n, subject in enumerate(SUBJECTS * 2)
]
TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "local_writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["STOP", "\\n\\n"], do_sample: false, max_gen_toks: 24}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks on a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, text in TASKS.items():
        source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        head = f"task: {name}\ndataset_path: json\ntest_split: test\nnum_fewshot: 0\n"
        head += f"dataset_kwargs: {json.dumps(source)}\n"
        (folder / f"{name}.yaml").write_text(head + text)
    return folder


def exported(folder: Path, cfg: ModelConfig) -> tuple[Path, Any]:
    """A Hugging Face folder, and the parameters: far enough from zero that choices are clear."""
    params = models.init(cfg, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    huggingface.save(folder, cfg, params, end_of_text=256)
    save_tokenizer(folder, ByteTokenizer(), context_length=cfg.context_length)
    return folder, params


def ours(folder: Path, cfg: ModelConfig, params: Any, **options: Any) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    mesh = make_mesh(devices=jax.devices()[:2])
    return language_model(cfg, params, tokenizer, mesh=mesh, batch_size=4, **options)


def asked(lm: Any, tasks: Path) -> Any:
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=lm, tasks=[*TASKS], task_manager=manager, log_samples=True, bootstrap_iters=0
    )


def answers(found: Any, task: str) -> list[Any]:
    return [reply[0] for sample in found["samples"][task] for reply in sample["resps"]]


def numbers(found: Any, task: str) -> dict[str, float]:
    return {
        name: value
        for name, value in found["results"][task].items()
        if isinstance(value, float) and "stderr" not in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["poly_norm", "swiglu"])
def test_numbers_are_those_of_the_harness_own_backend(activation, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    cfg = replace(CFG, activation=activation)
    folder, params = exported(tmp_path / "model", cfg)
    theirs = HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, trust_remote_code=True
    )
    expected_ids: dict[tuple[int, ...], list[int]] = {}
    generate = theirs._model_generate

    def spy(context: Any, **options: Any) -> Any:
        whole = generate(context=context, **options)
        size = context.shape[1]
        expected_ids[tuple(whole[0, :size].tolist())] = whole[0, size:].tolist()
        return whole

    theirs._model_generate = spy
    expected = asked(theirs, tasks)

    lm = ours(folder, cfg, params)
    found_ids: dict[tuple[int, ...], list[int]] = {}
    decode = lm._decode

    def recorded(prompts: Any, count: int, end: Any) -> Any:
        for index, tokens in decode(prompts, count, end):
            found_ids[tuple(prompts[index][-(cfg.context_length - count) :])] = tokens
            yield index, tokens

    lm._decode = recorded
    found = asked(lm, tasks)

    choices = answers(expected, "local_choice")
    assert len(choices) == sum(len(one["choices"]) for one in QUESTIONS)
    for mine, other in zip(answers(found, "local_choice"), choices, strict=True):
        assert mine[0] == pytest.approx(other[0], abs=NATS)
        assert mine[1] == other[1]
    assert numbers(found, "local_choice") == numbers(expected, "local_choice")

    for mine, other in zip(
        answers(found, "local_rolling"), answers(expected, "local_rolling"), strict=True
    ):
        assert mine == pytest.approx(other, abs=NATS)
    assert numbers(found, "local_rolling") == pytest.approx(
        numbers(expected, "local_rolling"), rel=1e-5
    )

    assert found_ids == expected_ids
    assert len(expected_ids) == len({one["question"] for one in QUESTIONS})
    assert answers(found, "local_writing") == answers(expected, "local_writing")
    assert numbers(found, "local_writing") == numbers(expected, "local_writing")


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, params = exported(tmp_path_factory.mktemp("lm") / "model", CFG)
    return ours(folder, CFG, params)


def test_a_text_begins_with_the_end_of_text_once(lm):
    assert lm.tok_encode("fox") == [256, *b"fox"]
    assert lm.tok_encode("<|endoftext|>fox") == [256, *b"fox"]
    assert lm.tok_encode("fox", add_special_tokens=False) == list(b"fox")
    # White space before a continuation is counted with it.
    assert lm._encode_pair("fox ", "ran") == ([256, *b"fox"], list(b" ran"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "asks for sampling"),
        ({"temperature": 0.7}, "asks for sampling"),
        ({"do_sample": False, "num_beams": 4}, "sets num_beams of generation"),
        ({"max_gen_toks": 64}, "ask for fewer"),
    ],
)
def test_what_is_not_greedy_is_refused(lm, settings, message):
    with pytest.raises(InputError, match=message):
        lm.generate_until([instance("generate_until", "fox", settings)])


def test_settings_of_generation_are_read_as_the_harness_reads_them(lm):
    end = "<|endoftext|>"
    assert lm._settings({"until": "a"}) == (256, ("a", end))
    assert lm._settings({"max_new_tokens": 5, "do_sample": False}) == (5, (end,))
    assert lm._settings({"until": ["a", end], "temperature": 0.0}) == (256, ("a", end))


def test_each_token_of_a_text_is_scored_once_in_windows_that_do_not_overlap(lm, monkeypatch):
    asked: list[Pair] = []

    def score(pairs: list[Pair]) -> Iterator[tuple[int, Score]]:
        asked.extend(pairs)
        for index in reversed(range(len(pairs))):
            yield index, Score(-float(len(pairs[index].continuation)), is_greedy=False)

    monkeypatch.setattr(lm, "_score", score)
    texts = ("fox", "".join(map(str, range(70))))
    found = lm.loglikelihood_rolling([instance("loglikelihood_rolling", text) for text in texts])
    short, ids = ([256, *text.encode()] for text in texts)
    assert len(ids) == 131
    # The context has 64 tokens; the last three are read behind all that has room before them.
    windows = [Pair([256], ids[:64]), Pair(ids[63:64], ids[64:128]), Pair(ids[66:128], ids[128:])]
    assert asked == [Pair([256], short), *windows]
    assert found == [-4.0, -131.0]


def test_texts_of_any_settings_come_in_the_order_that_they_were_asked_for(lm, monkeypatch):
    def decode(prompts: list[list[int]], count: int, end: Any) -> Iterator[tuple[int, list[int]]]:
        for index in reversed(range(len(prompts))):
            yield index, [*prompts[index][1:], *f"{count} STOP".encode()]

    monkeypatch.setattr(lm, "_decode", decode)
    settings = ({"max_gen_toks": 5}, {"max_gen_toks": 7}, {"max_gen_toks": 5, "until": [" STOP"]})
    asked = [instance("generate_until", text, settings[n % 3]) for n, text in enumerate("abcdef")]
    found = lm.generate_until(asked)
    assert found == ["a5 STOP", "b7 STOP", "c5", "d5 STOP", "e7 STOP", "f5"]


def test_a_tokenizer_of_another_model_is_refused(lm):
    small = replace(CFG, vocab_size=256)
    with pytest.raises(InputError, match="257 ids and the model 256"):
        language_model(small, None, lm.tokenizer, mesh=make_mesh(devices=jax.devices()[:1]))
