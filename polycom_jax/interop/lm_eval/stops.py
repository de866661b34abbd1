"""Where a generated text ends: as the harness's `hf` backend sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOOK_BACK = 2
"""Tokens beyond a stop text's own in which it is looked for: the model may spell it otherwise."""


@dataclass(frozen=True)
class Stop:
    """Ends a text at a token, or once the last few tokens spell one of some texts.

    These are the rules of `MultiTokenEOSCriteria` in lm-eval 0.4.13: a stop text that is n tokens
    long by itself is looked for in the text of the last n + 2 new tokens, special ones spelled out.

    Attributes:
        token: the end of text.
        texts: stop texts, each with the number of its tokens.
        spell: token ids to text, special ones included.
    """

    token: int
    texts: tuple[tuple[str, int], ...]
    spell: Callable[[Sequence[int]], str]

    def end(self, tokens: Sequence[int], start: int = 0) -> int | None:
        """How many of `tokens` the text has, the one that ends it included; None: it goes on.

        Args:
            tokens: all new ones.
            start: how many have been looked at before.
        """
        for count in range(start + 1, len(tokens) + 1):
            if tokens[count - 1] == self.token or self._spelled(tokens, count):
                return count
        return None

    def _spelled(self, tokens: Sequence[int], count: int) -> bool:
        return any(
            text in self.spell(tokens[max(0, count - n - LOOK_BACK) : count])
            for text, n in self.texts
        )
