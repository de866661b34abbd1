"""Text from a model: prompt in, continuations out."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from experiments.terminal.checks import at_least
from polycom_jax._errors import require
from polycom_jax._fields import check_fields
from polycom_jax.data import Tokenizer
from polycom_jax.models import ModelConfig, generate
from polycom_jax.models.sampling import check_sampling
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, fetch
from polycom_jax.training.state import split_count


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: most tokens to write after the prompt; the end of the document ends it
            earlier.
        temperature: temperature of sampling; 0 always takes the most probable token.
        top_k: sample from the k most probable tokens only; None: from all.
        top_p: sample from the most probable tokens that together reach this probability; None: from
            all.
        seed: seed of sampling.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, wide=("seed",))
        at_least(self, 1, "max_new_tokens")
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32).")
        check_sampling(self.temperature, self.top_k, self.top_p)


def complete(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str,
    how: Sampling,
    *,
    count: int = 1,
    ends: Collection[int] = (),
) -> list[str]:
    """`count` texts that begin with `prompt`, each up to the end of its document.

    What the tokenizer begins a text with goes before the prompt, as before every document in
    training; `ends` are tokens that end a text, too.
    """
    begin = len(tokenizer.begin)
    tokens = [*tokenizer.begin, *tokenizer.encode(prompt).tolist()]
    with on_mesh(params, count) as rules:
        new = generate(
            model,
            params,
            jnp.tile(jnp.array(tokens, jnp.int32), (count, 1)),
            key=jax.random.key(how.seed),
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            stop_token=tokenizer.eot,
            rules=rules,
        )
    texts = []
    for row in fetch(new).tolist():
        stops = [place for place, token in enumerate(row) if token in {tokenizer.eot, *ends}]
        texts.append(tokenizer.decode(tokens[begin:] + row[: min(stops, default=len(row))]))
    return texts


@contextmanager
def on_mesh(params: Params, count: int) -> Iterator[Rules | None]:
    """While it lasts, the mesh that the parameters lie on is in force; yields the rules for it.

    None where `count` rows do not divide over it: then XLA decides what lies where.
    """
    sharding, rules = params["final_norm"].sharding, Rules()
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or count % split_count(mesh, rules, "batch"):
        yield None
        return
    with jax.set_mesh(mesh):
        yield rules
