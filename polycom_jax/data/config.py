"""What a corpus is made of. Imports nothing heavy: command lines and tests read it alone."""

from dataclasses import dataclass
from typing import Literal

from polycom_jax._errors import InputError, require
from polycom_jax._fields import PlaceText, check_fields
from polycom_jax.data.weights import parts


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens.

    Attributes:
        source: "stdlib", the source text of the running Python's standard library; or a path or
            glob of files, here or in a bucket (.txt, .jsonl, either also as .gz, .xz or .zst;
            .parquet, .arrow); or the folder of a Hugging Face dataset, or one that TFDS prepared;
            or a TFDS name ("c4/en", "lm1b", "huggingface:..."). Several texts are mixed by weights:
            each is TEXT=WEIGHT, and of any run of training windows each has its share, WEIGHT out
            of the sum of all. Each is split, held out and measured by itself; a file may be in
            several that hold the same of it out.
        tokenizer: of all texts: "bytes" (256 values and an end-of-text token); "bpe", a byte-level
            BPE trained on the train split, of several texts on each by its weight; or the path of a
            Hugging Face `tokenizer.json`.
        end_of_text: the token of such a file that ends a text. Default: the one that the files
            beside it name (tokenizer_config.json, config.json), or one of the usual name.
        batch_size: sequences a step, over all processes.
        cache_dir: folder of prepared data, here or in a bucket (gs://BUCKET/PATH). Default: the
            environment variable POLYCOM_CACHE, else the platform's user cache folder.
        text_field: the field of a JSON line or of a TFDS example, or the column of a table, that
            holds the text.
        train_split: split of TFDS or of a Hugging Face dataset to train on; of TFDS also slices as
            it writes them ("train[:1%]").
        heldout: text to evaluate on. For files: a path or glob of other files, or `source`
            itself where no model is trained on it. For TFDS and Hugging Face datasets: a split.
            Default: of these the first of validation, valid, val, dev, heldout, test, testing,
            eval, evaluation that exists and that nothing of is trained on; else a share of the
            documents, chosen by a hash of their content. Not of several texts.
        undecodable: what happens to a document that is not UTF-8: "replace" puts U+FFFD in the
            place of bad bytes, "skip" leaves the document out, "error" ends the program. The first
            two are counted and reported.
        damaged: what happens to a record that cannot be read (bad JSON, a truncated .gz, a
            wrong checksum): "error" ends the program, "skip" leaves it out, counted and reported.
        document_bytes: a .txt file longer than this is split at line ends into documents of about
            this size. The default splits small text finer, into about 128 documents of at least
            1,024 bytes; another value is taken literally.
        bpe_train_bytes: text that a BPE is trained on, at most: every k-th document, and at most an
            eighth of it from one document.
        lock_timeout_s: seconds to wait for another process that prepares the same data.
    """

    source: PlaceText | tuple[PlaceText, ...] = "stdlib"
    tokenizer: PlaceText = "bpe"
    end_of_text: str | None = None
    batch_size: int = 16
    cache_dir: PlaceText | None = None
    text_field: str = "text"
    train_split: str = "train"
    heldout: PlaceText | None = None
    undecodable: Literal["replace", "skip", "error"] = "replace"
    damaged: Literal["error", "skip"] = "error"
    document_bytes: int = 65_536
    bpe_train_bytes: int = 12_000_000
    lock_timeout_s: float = 1_800.0

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        for name in ("source", "tokenizer", "text_field", "train_split"):
            require(
                bool(getattr(self, name)), f"data.{name} is empty; leave it out for the default."
            )
        require(
            isinstance(self.source, str) or self.heldout is None,
            f"data.heldout={self.heldout!r} is of one text; of several, each holds out its own"
            " documents: leave it out.",
        )
        parts(self.source)
        for name in ("batch_size", "document_bytes", "bpe_train_bytes"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name}={value} must be at least 1.")
        require(self.heldout != "", "data.heldout is empty; leave it out for the default.")
        require(
            self.heldout is None or self.source != "stdlib",
            f"data.heldout={self.heldout!r} does not go with data.source='stdlib', which has no"
            " split of its own; leave it out, or name files or a TFDS name as data.source.",
        )
        require(
            0 < self.lock_timeout_s <= 1e6,
            f"data.lock_timeout_s={self.lock_timeout_s} must be more than 0 seconds, 1e6 at most.",
        )

    @property
    def text(self) -> str:
        """The source, where it is one text.

        Raises:
            InputError: it is several.
        """
        if not isinstance(self.source, str):
            raise InputError(
                f"data.source={self.source!r}: several texts are for data.prepare_mixture."
            )
        return self.source
