"""A Hugging Face tokenizer by which text is only ever text, and what it cannot give back of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from polycom_jax._errors import InputError

_LEADS = ("\n", "a\n", "a", ".", "0")
"""What may stand before a text that goes on another: where one is merged with it, try the next."""

_HEAD = 256


class Encoder:
    """Ids of texts, without special tokens whatever the texts spell.

    Args:
        model: a `tokenizers.Tokenizer`.
        tree: the same, as its file has it.
        eot: the id that ends a document.
        name: of the tokenizer, for messages.
    """

    def __init__(self, model: Any, tree: Mapping[str, Any], eot: int, name: str) -> None:
        model.no_padding()
        model.no_truncation()
        model.encode_special_tokens = True  # i.e. encode their spelling as text
        self._model, self._eot, self._name = model, eot, name
        added = model.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        self._reserved = np.array(sorted((special - {_unknown_id(model, tree["model"])}) | {eot}))

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, `uint32 [tokens]`.

        Raises:
            InputError: a character that the tokenizer has no id for, not even an unknown token.
        """
        encoded = self._encoded(self._model.encode_batch_fast, texts)
        found = [np.asarray(one.ids, np.uint32) for one in encoded]
        if not found or not self._holds_special(np.concatenate(found)):  # asked of all at once
            return found
        return [
            self._apart(text) if self._holds_special(ids) else ids
            for text, ids in zip(texts, found, strict=True)
        ]

    def _holds_special(self, ids: np.ndarray) -> bool:
        return bool(np.isin(ids, self._reserved).any())

    def lead(self, text: str) -> str:
        """What to encode before `text` where it goes on another one, and to take away again.

        Some tokenizers put a space before any text: it then stands before the lead, whose ids come
        unchanged before those of `text`. "" where no lead stays apart from it.
        """
        head = text[:_HEAD]
        for lead in _LEADS:
            try:
                alone, both = self([lead, lead + head])
            except InputError:  # It has no id for this lead.
                continue
            if np.array_equal(alone, both[: len(alone)]):
                return lead
        return ""

    def rest(self, text: str) -> np.ndarray:
        """The ids of a text that goes on another."""
        lead = self.lead(text)
        alone, both = self([lead, lead + text])
        return both[len(alone) :]

    def _apart(self, text: str) -> np.ndarray:
        """The ids of a text that spells special tokens: cut within each, so that none is met.

        A model may have them in its own vocabulary, out of reach of `encode_special_tokens`.
        """
        (encoding,) = self._encoded(self._model.encode_batch, [text])
        cuts = []
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index in self._reserved and end - start > 1:
                cuts.append(start + 1)
            elif index == self._eot:
                raise InputError(
                    f"Tokenizer {self._name} encodes {text[start:end]!r} as its end-of-text token"
                    f" {self._eot}, which would end the document there; it needs an unknown token"
                    " of its own."
                )
        if not cuts:
            return np.asarray(encoding.ids, np.uint32)
        first, *others = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
        return np.concatenate([*self([first]), *map(self.rest, others)])

    def _encoded(self, encode: Any, texts: Sequence[str]) -> Any:
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # The binding raises plain `Exception`.
            raise InputError(
                f"Tokenizer {self._name} cannot encode the text ({error}); it needs an unknown"
                " token that is in its vocabulary, or all characters of the text."
            ) from error


def _unknown_id(model: Any, tree: Mapping[str, Any]) -> int | None:
    """The id of what the tokenizer does not know; text may hold it."""
    name = tree.get("unk_token")
    return tree.get("unk_id") if name is None else model.token_to_id(name)


def lost_bytes(text: str, again: str) -> int:
    """UTF-8 bytes of the characters that `text` has more often than `again`.

    With what a tokenizer decodes as `again`: what it has dropped, or holds as an unknown token, or
    has changed (to lower case, for one); the ids say nothing of them.
    """
    if text == again:
        return 0
    lost = Counter(text) - Counter(again)
    return sum(count * len(character.encode()) for character, count in lost.items())
