"""The harness's interface. It imports lm-eval: see `language_model` for what to call."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]

from polycom_jax._errors import require
from polycom_jax.interop.lm_eval.decoding import Decoder
from polycom_jax.interop.lm_eval.scoring import Pair, Score, Scorer
from polycom_jax.interop.lm_eval.stops import Stop
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params


class PolyComLM(TemplateLM):
    """See `polycom_jax.interop.lm_eval.language_model`."""

    max_gen_toks = 256
    """Where a task does not say how many tokens, as in the `hf` backend."""

    def __init__(
        self,
        cfg: ModelConfig,
        params: Params,
        tokenizer: Any,
        *,
        mesh: Mesh,
        batch_size: int,
        max_length: int | None,
        progress: Any,
    ) -> None:
        super().__init__()
        require(
            len(tokenizer) <= cfg.vocab_size,
            f"The tokenizer has {len(tokenizer)} ids and the model {cfg.vocab_size}: it is another"
            " model's.",
        )
        require(
            tokenizer.eos_token_id is not None,
            "The tokenizer has no eos_token; name one in its tokenizer_config.json.",
        )
        self.tokenizer: Any = tokenizer
        self.max_length = max_length or cfg.context_length
        self.batch_size = batch_size
        shape = {"batch_size": batch_size, "max_length": self.max_length}
        self._score = Scorer(cfg, params, mesh, **shape)
        self._decode = Decoder(cfg, params, mesh, **shape)
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text where nothing else does."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer is from."""
        return self.tokenizer.name_or_path

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; by default with what the tokenizer puts before a text, but never twice."""
        if add_special_tokens is None:
            before = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not has_bos_prefix(string, before)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """(log p of the continuation, is it what greedy decoding gives) of each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        scores: list[Any] = [None] * len(pairs)
        for done, (index, score) in enumerate(self._score(pairs), 1):
            scores[index] = tuple(score)
            self.cache_hook.add_partial("loglikelihood", requests[index][0], scores[index])
            self._progress("loglikelihood", done, len(pairs))
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """log p of each whole text, every token once, in windows that do not overlap.

        The first stands behind the prefix token, and what the tokenizer itself puts before a text
        is predicted too, as in the `hf` backend.
        """
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            new = [Pair(*make_disjoint_window(window)) for window in windows]
            pairs += new
            owners += [owner] * len(new)
        scores: list[Score | None] = [None] * len(pairs)
        for done, (index, score) in enumerate(self._score(pairs), 1):
            scores[index] = score
            self._progress("loglikelihood_rolling", done, len(pairs))
        sums = [0.0] * len(requests)
        for owner, score in zip(owners, scores, strict=True):
            assert score is not None
            sums[owner] += score.log_likelihood
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The most probable text behind each context, up to a stop text, the end, or a length.

        Raises:
            InputError: sampling, or a setting that greedy decoding does not have.
        """
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        done = 0
        for (count, until), indices in groups.items():
            prompts = [self.tok_encode(requests[i].args[0]) for i in indices]
            for place, tokens in self._decode(prompts, count, self._stop(until).end):
                index = indices[place]
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                texts[index] = postprocess_generated_text(text, list(until), None)
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                done += 1
                self._progress("generate_until", done, len(requests))
        return texts

    def _settings(self, given: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """How many tokens at most, and the stop texts."""
        known: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        count, until = known.pop("max_gen_toks"), known.pop("until")
        require(
            not known.pop("do_sample") and not known.pop("temperature", 0.0),
            f"A task asks for sampling ({dict(given)}); only greedy decoding is the same for every"
            " backend: give it do_sample: false.",
        )
        require(
            not known,
            f"A task sets {', '.join(sorted(known))} of generation, and here there are until,"
            " max_gen_toks, do_sample: false and temperature: 0 alone.",
        )
        end = self.tokenizer.decode([self.eot_token_id])
        return count, tuple(handle_stop_sequences(until, eos=end))

    def _stop(self, until: Sequence[str]) -> Stop:
        encode = self.tokenizer.encode
        texts = [(text, len(encode(text, add_special_tokens=False))) for text in until]
        return Stop(self.eot_token_id, tuple(texts), self.tokenizer.decode)
