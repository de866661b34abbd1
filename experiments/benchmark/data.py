"""Suite data: batches from a token store on disk to host memory, tokens a second."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import large_data, peers, shapes
from experiments.benchmark.contest import hold
from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import Options
from experiments.benchmark.results import Case, Result, Tell
from polycom_jax.data import TokenStore, train_batches
from polycom_jax.data.store import files
from polycom_jax.data.windows import gather

OURS = "train_batches"
PEERS = ("copy", "torch-loader")
TOKENS = 1 << 24
"""Tokens in the store: more than any cache holds."""
SHARDS = 8
EOT = 0
DOCUMENT = 700
"""Mean length of a document, in tokens."""
BATCHES = 64
"""Batches a call: many more than wait ready."""


def cases(options: Options) -> list[Case]:
    """Batches of a store, and of one as large as the paper's corpus."""
    return [
        Case("data", "batches", partial(_run, options)),
        Case("data", "250 billion tokens", partial(_run_large, options)),
    ]


LARGE = (64, 4096)
"""Rows and tokens a row."""


def _run_large(options: Options, tell: Tell) -> Result:
    rows, length = LARGE
    late = f"batch of step {large_data.LATE:,}"
    with tempfile.TemporaryDirectory(prefix="polycom-benchmark-") as name:
        folder = Path(name)
        tell(f"writing {large_data.SHARDS:,} shards")
        large_data.write(folder)
        store = large_data.opened(folder)
        draws = {
            "batch of step 0": large_data.drawing(store, rows, length, 0),
            late: large_data.drawing(store, rows, length, large_data.LATE),
            "opening": partial(large_data.opened, folder),
        }
        return hold(
            "data",
            f"{rows} x {length} tokens of {store.num_tokens:,}, {large_data.SHARDS:,} shards",
            [Contestant(name, draw, lambda outcome: None) for name, draw in draws.items()],
            options,
            tell,
            dtype="float32",
            references=("batch of step 0",),
            left_out={},
            notes=("one thread; files without contents, read from a local disk",),
        )


def _run(options: Options, tell: Tell) -> Result:
    cfg = shapes.model(options, "swiglu")
    rows, length = shapes.batch_size(options), cfg.context_length
    chosen, left_out = peers.split(options.peers, PEERS)
    with tempfile.TemporaryDirectory(prefix="polycom-benchmark-") as folder:
        tell("writing a token store")
        store = random_store(Path(folder), cfg.vocab_size)
        iterator = train_batches(store, batch_size=rows, seq_len=length, seed=0)
        contestants = [_drawing(OURS, lambda: next(iterator))]
        if "copy" in chosen:
            contestants.append(_drawing("gather alone", _gathers(store, rows, length)))
        if "torch-loader" in chosen:
            loader = _torch_batches(store, rows, length)
            contestants.append(_drawing("torch DataLoader", lambda: next(loader)))
        return hold(
            "data",
            f"{rows} x {length} tokens of {TOKENS:,}, {cfg.vocab_size} ids",
            contestants,
            options,
            tell,
            dtype="float32",
            references=(OURS,),
            left_out=left_out,
            numbers=lambda readings: (
                lambda name, seconds: {"tokens/s": BATCHES * rows * length / seconds}
            ),
            notes=(
                "train_batches: a permutation by Grain, threads that work ahead; gather alone: one"
                " thread, windows in order; torch DataLoader: the same windows one by one,"
                " shuffled, in the process itself (num_workers=0)",
            ),
        )


def _drawing(name: str, draw: Callable[[], Any]) -> Contestant:
    """A call takes `BATCHES` batches."""

    def call() -> None:
        for _ in range(BATCHES):
            draw()

    return Contestant(name, call, lambda outcome: None)


def random_store(folder: Path, vocab_size: int) -> TokenStore:
    """A store of random documents, mapped from disk as a real one is."""
    random = np.random.default_rng(0)
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    tokens = random.integers(1, vocab_size, TOKENS, dtype)
    begins = np.cumsum(random.geometric(1 / DOCUMENT, 2 * TOKENS // DOCUMENT) + 1)
    tokens[np.append(0, begins[begins < TOKENS - 1])] = EOT
    ends = np.arange(1, SHARDS + 1) * (TOKENS // SHARDS)
    paths = [folder / f"{shard}.bin" for shard in range(SHARDS)]
    for path, shard in zip(paths, np.split(tokens, SHARDS), strict=True):
        shard.tofile(path)
    documents = int(np.count_nonzero(tokens == EOT))
    return TokenStore(
        ends,
        files(paths, np.diff(ends, prepend=0).tolist(), dtype),
        EOT,
        documents,
        num_bytes=TOKENS,
    )


def _gathers(store: TokenStore, rows: int, length: int) -> Callable[[], Any]:
    windows = store.num_targets // length
    step = iter(range(1 << 62))
    return lambda: gather(store, (next(step) * rows + np.arange(rows)) % windows, length)


def _torch_batches(store: TokenStore, rows: int, length: int) -> Iterator[Any]:
    """What PyTorch users write: a map-style dataset of windows behind a DataLoader."""
    from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

    class Windows:
        def __len__(self) -> int:
            return store.num_targets // length

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            batch = gather(store, np.array([index]), length)
            return {name: values[0] for name, values in batch.items()}

    while True:
        yield from DataLoader(Windows(), batch_size=rows, shuffle=True, drop_last=True)  # pyright: ignore[reportArgumentType]
