"""What the harness is answered with, on token ids: against plain loops, without lm-eval."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import TINY

from polycom_jax import InputError, models
from polycom_jax.data import ByteTokenizer
from polycom_jax.interop.lm_eval import language_model
from polycom_jax.interop.lm_eval.buckets import batches, bucket, filled
from polycom_jax.interop.lm_eval.decoding import STEPS, Decoder, make_decode_steps
from polycom_jax.interop.lm_eval.scoring import PLACES, Pair, Scorer, make_score_step
from polycom_jax.interop.lm_eval.stops import Stop
from polycom_jax.models import ModelConfig, MoEConfig, exchange
from polycom_jax.params import shardings
from polycom_jax.sharding import Rules, make_mesh

# A context that is no power of two and no multiple of PLACES.
CFG = replace(TINY, num_kv_heads=1, activation="relu2", context_length=72)
FORWARD = jax.jit(models.forward, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    """Far from zero: greedy texts are varied."""
    return jax.tree.map(lambda p: p * 8, models.init(CFG, jax.random.key(0)))


@pytest.fixture(scope="module")
def mild():
    """Near enough to zero that attention does not enlarge rounding errors."""
    return jax.tree.map(lambda p: p * 2, models.init(CFG, jax.random.key(0)))


@pytest.fixture(scope="module")
def mesh():
    """The plain loops run on one device."""
    return make_mesh(2, 2, devices=jax.devices()[:4])


def on(mesh, params):
    return jax.device_put(params, shardings(models.specs(CFG), mesh, Rules()))


def logits(params, tokens: Sequence[int]) -> np.ndarray:
    """Behind each token, in float64; one shape, so that one program is compiled."""
    padded = np.zeros((1, CFG.context_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(FORWARD(CFG, params, jnp.array(padded)), np.float64)[0, : len(tokens)]


def drawn(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, CFG.vocab_size, length).tolist()


def test_buckets_are_few_and_hold_what_they_must():
    found = {bucket(n, 100) for n in range(1, 101)}
    assert found == {32, 64, 100}
    assert all(bucket(n, 100) >= n for n in range(1, 101))
    assert bucket(5, 20) == 20


def test_batches_hold_each_request_once_longest_first():
    shapes = [(32, 1), (64, 1), (32, 1), (64, 2), (32, 1)]
    assert batches(shapes, 2) == [[3], [1], [0, 2], [4]]
    assert batches([], 2) == []


def test_rows_are_filled_with_zeros():
    np.testing.assert_array_equal(filled([[1, 2], [3]], (3, 3)), [[1, 2, 0], [3, 0, 0], [0, 0, 0]])


def test_scores_are_those_of_one_uncached_pass_a_request(mild, mesh):
    sizes = [(1, 1), (3, 9), (40, PLACES - 1), (40, PLACES + 1), (1, 72), (90, 3), (60, 60)]
    pairs = [Pair(drawn(i, a), drawn(99 - i, b)) for i, (a, b) in enumerate(sizes)]
    greedy = drawn(5, 6)
    for _ in range(3):
        greedy.append(int(logits(mild, greedy)[-1].argmax()))
    pairs.append(Pair(greedy[:6], greedy[6:]))
    scorer = Scorer(CFG, on(mesh, mild), mesh, batch_size=4, max_length=72)
    found = dict(scorer(pairs))
    assert sorted(found) == list(range(len(pairs)))
    for i, (context, continuation) in enumerate(pairs):
        # From the left is cut what is more than the context and the token behind it.
        read = [*context, *continuation][-73:][:-1]
        rows = logits(mild, read)[-len(continuation) :]
        top = rows.max(axis=1, keepdims=True)
        log_p = rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
        expected = log_p[np.arange(len(continuation)), continuation].sum()
        # Some 70 tokens of nats of order 4, each with float32's relative error and some sums.
        assert found[i].log_likelihood == pytest.approx(expected, rel=1e-5)
        assert found[i].is_greedy == (rows.argmax(axis=1) == continuation).all()
    assert found[len(pairs) - 1].is_greedy
    assert not found[1].is_greedy


def mixture() -> ModelConfig:
    """Of so small a capacity, filled places or other requests take what a token needs."""
    moe = MoEConfig(num_experts=2, top_k=1, capacity_factor=0.2)
    return replace(CFG, moe=moe, context_length=16)


def test_no_program_of_the_harness_drops_tokens(monkeypatch: pytest.MonkeyPatch):
    cfg, mesh = mixture(), make_mesh(1, 1, 1, 2, devices=jax.devices()[:2])
    asked: list[float | None] = []
    slots = exchange.slots
    monkeypatch.setattr(exchange, "slots", lambda *a: (asked.append(a[-1]), slots(*a))[1])
    held = jax.eval_shape(lambda: models.init(cfg, jax.random.key(0)))
    ids = jax.ShapeDtypeStruct((2, PLACES), jnp.int32)
    score = make_score_step(cfg, mesh)
    batch = {"tokens": ids, "places": ids, "targets": ids, "mask": ids.update(dtype=bool)}
    score.lower(held, batch)
    assert asked == [None]
    first, _ = make_decode_steps(cfg, mesh)
    first.lower(held, {"tokens": ids, "lengths": ids.update(shape=(2, 1))}, PLACES)
    assert asked == [None, None]


@pytest.mark.slow
def test_scores_of_experts_with_a_capacity_do_not_depend_on_the_batch():
    cfg, mesh = mixture(), make_mesh(1, 1, 1, 2, devices=jax.devices()[:2])
    params = jax.tree.map(lambda p: p * 4, models.init(cfg, jax.random.key(0)))
    params = jax.device_put(params, shardings(models.specs(cfg), mesh, Rules()))
    scorer = Scorer(cfg, params, mesh, batch_size=4, max_length=16)
    pairs = [Pair(drawn(i, 5 + i), drawn(9 - i, 5)) for i in range(4)]
    together = dict(scorer(pairs))
    for i, pair in enumerate(pairs):
        ((_, alone),) = scorer([pair])
        assert together[i].log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-6)


@pytest.mark.parametrize("pair", [Pair([], [1]), Pair([1], []), Pair([1], [1] * 73)])
def test_what_cannot_be_scored_is_refused(params, pair):
    mesh = make_mesh(devices=jax.devices()[:1])
    scorer = Scorer(CFG, params, mesh, batch_size=4, max_length=72)
    with pytest.raises(InputError, match=r"1 to 72 \(the model's context\) behind at least 1"):
        list(scorer([pair]))


def test_a_model_of_nan_gets_no_score(mild):
    mesh = make_mesh(devices=jax.devices()[:1])
    broken = mild | {"final_norm": mild["final_norm"].at[3].set(jnp.nan)}
    scorer = Scorer(CFG, broken, mesh, batch_size=4, max_length=72)
    with pytest.raises(InputError, match="A log-likelihood is nan"):
        list(scorer([Pair([1, 2], [3])]))


def plain_greedy(params, prompt: list[int], count: int, end: int) -> list[int]:
    whole = prompt[-(72 - count) :]
    new: list[int] = []
    while len(new) < count and end not in new:
        new.append(int(logits(params, [*whole, *new])[-1].argmax()))
    return new


def test_continuations_are_those_of_repeated_uncached_passes(params, mesh):
    count = STEPS + 6
    prompts = [drawn(i, n) for i, n in enumerate((1, 5, 33, 80, 50, 12))]
    free = [plain_greedy(params, prompt, count, -1) for prompt in prompts]
    end = free[1][STEPS + 2]  # one that a row reaches in its second round
    stop = Stop(end, (), lambda ids: "")
    decoder = Decoder(CFG, on(mesh, params), mesh, batch_size=4, max_length=72)
    found = dict(decoder(prompts, count, stop.end))
    assert sorted(found) == list(range(len(prompts)))
    expected = [plain_greedy(params, prompt, count, end) for prompt in prompts]
    assert [found[i] for i in range(len(prompts))] == expected
    assert len({len(row) for row in expected}) > 1


@pytest.mark.parametrize("count", [0, 72])
def test_a_context_without_room_is_refused(params, count):
    mesh = make_mesh(devices=jax.devices()[:1])
    decoder = Decoder(CFG, params, mesh, batch_size=4, max_length=72)
    with pytest.raises(InputError, match="ask for fewer"):
        list(decoder([[1]], count, lambda tokens, start: None))


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ([], 3, "A prompt without a token"),
        ([1, 40], 3, "ids from 1 to 40, and the model's are below 40"),
        ([-100, 3], 3, "ids from -100 to 3"),
        ([1], True, "count=True must be a whole number"),
    ],
)
def test_prompts_that_are_none_are_refused(params, prompt, count, message):
    mesh = make_mesh(devices=jax.devices()[:1])
    decoder = Decoder(CFG, params, mesh, batch_size=4, max_length=72)
    with pytest.raises(InputError, match=message):
        list(decoder([[1], prompt], count, lambda tokens, start: None))


def test_a_model_that_is_no_number_writes_nothing(params):
    mesh = make_mesh(devices=jax.devices()[:1])
    broken = {**params, "final_norm": params["final_norm"] * jnp.nan}
    decoder = Decoder(CFG, broken, mesh, batch_size=4, max_length=72)
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        list(decoder([[1, 2]], 3, lambda tokens, start: None))


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(params):
    mesh = make_mesh(devices=jax.devices()[:4])
    with pytest.raises(InputError, match="batch_size=6 does not divide over 4 devices"):
        Scorer(CFG, params, mesh, batch_size=6, max_length=72)


def spelled(tokens: Sequence[int]) -> str:
    return ByteTokenizer().decode(tokens)


def test_a_text_ends_with_the_token_that_completes_a_stop_text():
    stop = Stop(256, (("\n\n", 2), ("Q:", 2)), spelled)
    for text in ("one\n\ntwo", "Q: why", "no end", "a\n", "a Q and a \n and Q\n\nQ:", ""):
        tokens = list(text.encode())
        ends = [n for n in range(len(text) + 1) if "\n\n" in text[:n] or "Q:" in text[:n]]
        assert stop.end(tokens) == (ends[0] if ends else None)
    assert stop.end([65, 256, 10, 10]) == 2
    # What was looked at before is not looked at again, but what a text begins with is.
    assert stop.end(list(b"ab\n\n"), start=3) == 4
    assert stop.end(list(b"a\n\nb"), start=3) == 4


def test_a_stop_text_is_looked_for_in_two_tokens_more_than_its_own():
    names = {0: "a", 1: "b", 2: "-", 3: "ab"}
    stop = Stop(9, (("ab", 1),), lambda ids: "".join(names[i] for i in ids))
    assert stop.end([2, 0, 1]) == 3  # spelled by two tokens instead of one
    assert stop.end([3, 2, 2], start=2) == 3  # three tokens back
    assert stop.end([3, 2, 2, 2], start=3) is None


def test_without_the_harness_one_line_says_what_to_install(params, monkeypatch):
    monkeypatch.delitem(sys.modules, "polycom_jax.interop.lm_eval.adapter", raising=False)
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.instance"):
        monkeypatch.setitem(sys.modules, name, None)
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(InputError, match=r"pip install 'polycom-jax\[eval\]'") as caught:
        language_model(CFG, params, None, mesh=mesh)
    assert "\n" not in str(caught.value)
