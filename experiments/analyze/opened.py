"""A model to look into, and held-out text to run it on."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments.run.folder import Workdir, data_record
from experiments.run.model_loading import Model, Split, Weights, check_finite, load_model, read_text
from polycom_jax._errors import require
from polycom_jax.data import Corpus, prepare_mixture
from polycom_jax.data.windows import gather
from polycom_jax.storage import Place
from polycom_jax.training.checkpoint import all_steps
from polycom_jax.training.loss import Batch

Tell = Callable[[str], None]


def _silent(text: str) -> None:
    """Says nothing."""


def open_model(
    folder: Place,
    *,
    tokens: int,
    checkpoint: str = "latest",
    weights: Weights = "last",
    data: str | None = None,
    split: Split = "heldout",
    tokenizer: str | None = None,
    text_field: str | None = None,
    tell: Tell = _silent,
) -> tuple[Model, Batch]:
    """A run's model or a Hugging Face folder's, and windows of text that it was not trained on.

    Args:
        folder: of the run, or with config.json and safetensors files.
        tokens: of text; in whole windows of the model's context, or in one shorter window, spread
            evenly over what is held out.
        checkpoint, weights: of a run, as `load_trained` takes them.
        data: a text; None: that of the run, of which the held-out part is taken.
        split: of `data`: the held-out part, or all of files.
        tokenizer: where the folder has none, see `read_text`.
        text_field: see `read_text`.
        tell: takes a line on what is being done.

    Raises:
        InputError: no model there, or one with numbers that are not finite; a run's text is not
            what it was, or an imported model comes without text.
    """
    model = load_model(folder, checkpoint, weights=weights)
    check_finite(model.origin, model.params)
    if data is None:
        corpus = _own_text(model, tell)
    else:
        needed = tokenizer if model.tokenizer is None else None
        corpus = read_text(model, data, tell, split=split, tokenizer=needed, text_field=text_field)
    length = min(model.cfg.context_length, tokens)
    every = -(-corpus.heldout.num_targets // length)
    require(every > 0, f"{data or folder}: nothing of the text is held out; name a longer one.")
    windows = np.linspace(0, every, min(every, -(-tokens // length)), endpoint=False)
    return model, jax.device_put(gather(corpus.heldout, windows.astype(np.int64), length))


def seed_of(model: Model) -> int:
    """The seed that a run began with; 0 for a model that is no run's."""
    return 0 if model.step is None else Workdir(model.folder).read_config().run.seed


def common_step(folders: Sequence[Place]) -> int | None:
    """The latest step that all these runs have a checkpoint of."""
    steps = [set(all_steps(Workdir(folder).checkpoints)) for folder in folders]
    return max(set.intersection(*steps), default=None) if steps else None


def _own_text(model: Model, tell: Tell) -> Corpus:
    """What the run was trained on, checked to be that."""
    require(
        model.step is not None,
        f"{model.folder} does not tell what text goes with it; name one: --data stdlib, or a file.",
    )
    workdir = Workdir(model.folder)
    vocab_size = workdir.record().get("vocab_size_asked", model.cfg.vocab_size)
    require(
        isinstance(model.data.source, str),
        f"{model.folder} was trained on several texts ({' '.join(model.data.source)}); name one of"
        " them with --data.",
    )
    data = prepare_mixture(model.data, vocab_size=vocab_size, progress=tell)
    workdir.check_data(data_record(data), data.earlier)
    return data.corpora[0]
