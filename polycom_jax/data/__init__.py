"""Text to batches: corpora, tokenizers, a token store in shards, windows of it (Grain).

    corpus = data.prepare(data.DataConfig(), vocab_size=4096)
    for batch in data.train_batches(corpus.train, batch_size=16, seq_len=256, seed=0): ...

Importing this is cheap: TFDS, Grain and `tokenizers` are imported by what needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from polycom_jax.data.config import DataConfig as DataConfig

if TYPE_CHECKING:
    from polycom_jax.data.corpus import Corpus as Corpus
    from polycom_jax.data.corpus import prepare as prepare
    from polycom_jax.data.mixed_windows import mixed_batches as mixed_batches
    from polycom_jax.data.mixture import Mixture as Mixture
    from polycom_jax.data.mixture import prepare_mixture as prepare_mixture
    from polycom_jax.data.preparing import Team as Team
    from polycom_jax.data.store import TokenStore as TokenStore
    from polycom_jax.data.tokenizers import ByteTokenizer as ByteTokenizer
    from polycom_jax.data.tokenizers import FileTokenizer as FileTokenizer
    from polycom_jax.data.tokenizers import Tokenizer as Tokenizer
    from polycom_jax.data.windows import Batch as Batch
    from polycom_jax.data.windows import eval_batches as eval_batches
    from polycom_jax.data.windows import train_batches as train_batches

_HOMES = {
    "Batch": "windows",
    "ByteTokenizer": "tokenizers",
    "Corpus": "corpus",
    "FileTokenizer": "tokenizers",
    "Mixture": "mixture",
    "Team": "preparing",
    "TokenStore": "store",
    "Tokenizer": "tokenizers",
    "eval_batches": "windows",
    "mixed_batches": "mixed_windows",
    "prepare": "corpus",
    "prepare_mixture": "mixture",
    "train_batches": "windows",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"polycom_jax.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'polycom_jax.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["DataConfig", *_HOMES])
