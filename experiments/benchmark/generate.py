"""Suite generate: greedy decoding with a cache, by us and by transformers."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import peers, shapes
from experiments.benchmark.contest import hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from polycom_jax import models
from polycom_jax._errors import InputError, require
from polycom_jax.interop import huggingface
from polycom_jax.models import ModelConfig
from polycom_jax.models.decode import prefill
from polycom_jax.params import Params

OURS = "generate"
HF = "hf-generate"
PEERS = (HF,)
ACTIVATIONS = ("poly_norm", "swiglu")
"""One that transformers runs by our file beside the weights, and its own Llama."""

ROWS = (1, 8)
"""Texts that are written at a time, where --batch-size does not say."""


class Ours:
    """`models.generate` of a prompt [B, T]."""

    def __init__(self, cfg: ModelConfig, params: Params, prompt: np.ndarray, count: int) -> None:
        self._cfg, self._params, self._count = cfg, params, count
        self._prompt = jnp.asarray(prompt)

    def __call__(self) -> Any:
        """Writes `count` tokens a row."""
        key = jax.random.key(0)
        count = self._count
        return models.generate(
            self._cfg, self._params, self._prompt, key=key, max_new_tokens=count, temperature=0.0
        )

    def wait(self, outcome: Any) -> Any:
        """Returns when they are there."""
        return jax.block_until_ready(outcome)

    def tokens(self) -> np.ndarray:
        """What it writes, [B, count]."""
        return np.asarray(self())

    def logits(self) -> np.ndarray:
        """Behind the prompt, [B, V]."""
        read = jax.jit(lambda p, x: prefill(self._cfg, p, x, room=x.shape[1])[0])
        return np.asarray(read(self._params, self._prompt))


def cases(options: Options) -> list[Case]:
    """One for each activation and number of rows."""
    require(options.seq_len != 1, "seq_len=1 has no place for a prompt and a token behind it.")
    sizes = (options.batch_size,) if options.batch_size else ROWS
    return [
        Case(
            "generate",
            f"{shapes.name(options)} {activation}, {rows} at a time",
            partial(_run, options, activation, rows),
        )
        for activation in options.activations or ACTIVATIONS
        for rows in sizes
    ]


def _run(options: Options, activation: str, rows: int, tell: Tell) -> Result:
    chosen, left_out = peers.split(options.peers, PEERS)
    cfg = shapes.model(options, activation)
    try:
        shapes.fitting(options, (activation,))
    except InputError as error:  # cases of other activations go on
        return Result("generate", f"{shapes.name(options)} {activation}", (), {OURS: str(error)})
    length = cfg.context_length // 2
    count = cfg.context_length - length
    tell("making parameters")
    params = jax.jit(lambda key: models.init(cfg, key))(jax.random.key(0))
    prompt = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, length), np.int32)
    writers: dict[str, Any] = {OURS: Ours(cfg, params, prompt, count)}
    if HF in chosen:
        tell("exporting the model")
        try:
            writers[HF] = _exported(cfg, params, prompt, count)
        except InputError as error:  # there is no PyTorch code of this model
            left_out[HF] = str(error)
    tell("comparing tokens")
    written = {name: writer.tokens() for name, writer in writers.items()}
    same = [float(np.mean(tokens == written[OURS])) for tokens in written.values()]
    about = f"{activation}, {rows} x ({length} + {count}) tokens, {cfg.dtype}"
    return hold(
        "generate",
        f"{shapes.name(options)} {about}",
        [
            Contestant(name, each, each.wait, values=lambda each=each: [each.logits()])
            for name, each in writers.items()
        ],
        options,
        tell,
        dtype=cfg.dtype,
        references=(OURS,),
        left_out=left_out,
        numbers=lambda readings: lambda name, seconds: {"tokens/s": rows * count / seconds},
        notes=(
            f"greedy, {count} tokens behind a prompt of {length}; {100 * min(same):.0f} % of the"
            " peer's tokens are ours, and others differ where two are about as probable",
        ),
    )


def _exported(cfg: ModelConfig, params: Params, prompt: np.ndarray, count: int) -> Any:
    """transformers with the same parameters, by way of a folder as `experiments.convert` writes."""
    from experiments.benchmark.generate_torch import HuggingFaceGenerate

    with tempfile.TemporaryDirectory() as parent:
        # Its name is that of the copy which transformers keeps of our file.
        folder = Path(parent) / "polycom-benchmark"
        huggingface.save(folder, cfg, params)
        return HuggingFaceGenerate(folder, cfg.dtype, prompt, count)
