from typing import Any

from experiments.config import default_config
from experiments.pretrain import treatment
from polycom_jax.data import ByteTokenizer, Corpus


class Store:
    """A store of three documents, `long` of which are longer than any context."""

    num_documents = 3

    def __init__(self, long: int) -> None:
        self.long = long

    def documents_longer_than(self, tokens: int) -> int:
        assert tokens == 256
        return self.long


def told(long: int, undecodable: int) -> str:
    none = {"undecodable": 0, "empty": 0, "damaged": 0}
    counts = none | {"undecodable": undecodable}
    summary = {"undecodable": "replace", "damaged": "error", "train": counts, "heldout": none}
    store: Any = Store(long)
    corpus = Corpus(store, store, ByteTokenizer(), fingerprint="", summary=summary)
    return treatment(default_config("tiny"), corpus)


def test_documents_that_were_not_taken_as_they_are_are_told_of():
    assert told(0, 0) == ""
    assert told(2, 0) == (
        "2 of 3 training documents are longer than the context of 256 and run over several windows"
    )
    assert "1 document with undecodable bytes replaced" in told(2, 1)
