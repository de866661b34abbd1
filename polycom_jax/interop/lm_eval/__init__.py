"""lm-evaluation-harness: a model of this project as one that the harness asks its questions.

What is computed stands in `scoring.py` and `decoding.py`, which know tokens alone and need no more
than JAX; `adapter.py` is the harness's own interface (extra `eval`).
"""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from polycom_jax._errors import InputError
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params

# The adapter imports the harness: whoever walks the modules need not have it.
__all__ = ["Progress", "language_model"]

Progress = Callable[[str, int, int], None]
"""Takes what is being done, how many requests are, and how many there are."""


def language_model(
    cfg: ModelConfig,
    params: Params,
    tokenizer: Any,
    *,
    mesh: Mesh,
    batch_size: int = 8,
    max_length: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Any:
    """A model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Numbers are those of the harness's `hf` backend on the same weights and tokenizer, its rules
    included: the tokenizer says what stands before a text, contexts that are too long lose their
    beginning, and a rolling likelihood stands behind the prefix token.

    Args:
        cfg: the model.
        params: its parameters, on `mesh`.
        tokenizer: as `transformers.AutoTokenizer` loads it.
        mesh: devices; a batch is split over them as in `polycom_jax.training.evaluate`.
        batch_size: requests at a time.
        max_length: most tokens that the model sees at once; None: `cfg.context_length`.
        progress: called after each batch.

    Raises:
        InputError: lm-eval is not installed, a tokenizer of another model, or a batch that does not
            divide over the devices. Later: sampling, or requests that the context has no room for.
    """
    try:
        from polycom_jax.interop.lm_eval.adapter import PolyComLM
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness cannot be imported ({error}); pip install 'polycom-jax[eval]'."
        ) from error
    return PolyComLM(
        cfg,
        params,
        tokenizer,
        mesh=mesh,
        batch_size=batch_size,
        max_length=max_length,
        progress=progress,
    )
