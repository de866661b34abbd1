"""Files that went wrong at random: read right, or refused in one line; never a traceback.

Each kind of file has a judge outside this project: `gzip -t` and `xz -t` say which packed text is
broken, `tokenizers` which tokenizer is, and `transformers`, where it is installed, what a model
computes. What a judge calls broken must be refused, and what both can read must agree.
"""

import contextlib
import gzip
import json
import lzma
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_folders as tiny
from tokenizers import Tokenizer

from polycom_jax import models
from polycom_jax._errors import InputError, InputWarning
from polycom_jax.data.documents import file_rows
from polycom_jax.data.rows import Reading
from polycom_jax.data.tokenizers import FileTokenizer, train_bpe
from polycom_jax.interop import huggingface

LINES = "".join(
    json.dumps({"text": f"line {number} of a small text, \u00e9\u6f22"}) + "\n"
    for number in range(12)
).encode()
PACKED: Mapping[str, bytes] = {
    "a.jsonl": LINES,
    "a.txt": LINES,
    "a.jsonl.gz": gzip.compress(LINES[:300]) + gzip.compress(LINES[300:]),
    "a.jsonl.xz": lzma.compress(LINES[:300]) + bytes(4) + lzma.compress(LINES[300:]),
}
JUDGES = {".gz": ["gzip", "-t"], ".xz": ["xz", "-t"]}
"""Programs that exit with 0 for a whole file."""


def damaged(raw: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    out = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at, to = sorted(int(i) for i in rng.integers(0, len(out) + 1, 2))
        kind = rng.integers(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del out[at : min(to, at + 40)]
        elif kind == 2:
            del out[to:]
        elif kind == 3:
            out[at:at] = out[at:to]
        else:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(out)


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**30, 0.5, -1.5, 1e400, float("nan")),
    *("", "linear", "16", "\u00e9", [], [1], ["a"], {}, {"type": "linear", "factor": 2.0}),
)


def changed(tree: Any, rng: np.random.Generator) -> Any:
    """The JSON tree with one value, key or element taken away, doubled or replaced."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    node, key = places[int(rng.integers(len(places)))]
    value = VALUES[int(rng.integers(len(VALUES)))]
    match rng.integers(4):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[f"{key}_"] = node.pop(key)
        case _:
            node[key] = value
    return tree


def read_text(path: Path) -> list[bytes] | None:
    """The documents; None: refused."""
    try:
        return [raw for _, raw in file_rows(path, Reading()) if raw is not None]
    except InputError:
        return None


def try_text(folder: Path, rng: np.random.Generator) -> None:
    """A text file with damage."""
    name = sorted(PACKED)[int(rng.integers(len(PACKED)))]
    path = folder / name
    path.write_bytes(damaged(PACKED[name], rng))
    found = read_text(path)
    judge = JUDGES.get(path.suffix)
    if judge and shutil.which(judge[0]):
        broken = subprocess.run([*judge, path], capture_output=True, check=False).returncode == 1
        assert not (broken and found is not None), (
            f"{judge[0]} calls {path} broken, and it was read"
        )


def try_tokenizer(folder: Path, rng: np.random.Generator) -> None:
    """A tokenizer.json with one thing changed, or bytes of it."""
    good = folder / "good.json"
    train_bpe(iter(["a small text of words, and words again"] * 4), 300, good)
    path = folder / "tokenizer.json"
    if rng.integers(2):
        path.write_bytes(damaged(good.read_bytes(), rng))
    else:
        path.write_text(json.dumps(changed(json.loads(good.read_text()), rng)))
    try:
        Tokenizer.from_file(str(path))
        broken = False
    except Exception:  # `tokenizers` raises nothing more special
        broken = True
    try:
        tokenizer = FileTokenizer(path)
        text = "words of a text"
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
    except InputError:
        return
    assert not broken, f"tokenizers cannot read {path}, and it was read"
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


def try_folder(folder: Path, rng: np.random.Generator) -> None:
    """A Hugging Face folder with one thing changed in its config.json, or bytes of its weights."""
    name = sorted(tiny.CONFIGS)[int(rng.integers(len(tiny.CONFIGS)))]
    config = tiny.CONFIGS[name]
    path = tiny.write(folder / "model", config, tiny.weights(config))
    if rng.integers(4):
        (path / "config.json").write_text(json.dumps(changed(config, rng)))
    else:
        tensors = path / "model.safetensors"
        tensors.write_bytes(damaged(tensors.read_bytes(), rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # of fields that nobody knows
        try:
            cfg, params = huggingface.load(path)
        except InputError:
            return
    ours = np.asarray(models.forward(cfg, params, jnp.asarray(tiny.TOKENS)), np.float64)
    if find_spec("transformers") is not None:
        theirs = transformers_logits(path)
        assert theirs is not None, f"transformers cannot load {path}, and it was loaded"
        np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=str(path / "config.json"))


def transformers_logits(path: Path) -> np.ndarray | None:
    """What `transformers` computes; None: it raises, or a weight is missing or of another shape."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    with contextlib.suppress(Exception), torch.no_grad():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32
        )
        model, about = loaded
        if not (about["missing_keys"] or about["mismatched_keys"]):
            return model.eval()(torch.tensor(tiny.TOKENS)).logits.double().numpy()
    return None


SUBJECTS: Mapping[str, Callable[[Path, np.random.Generator], None]] = {
    "text": try_text,
    "tokenizer": try_tokenizer,
    "folder": try_folder,
}


def fuzz(subject: str, folder: Path, seeds: range) -> None:
    for seed in seeds:
        own = folder / str(seed)
        own.mkdir()
        SUBJECTS[subject](own, np.random.default_rng([seed, len(subject)]))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_damaged_files_are_read_right_or_refused(subject: str, tmp_path: Path) -> None:
    fuzz(subject, tmp_path, range(12))


@pytest.mark.exhaustive
@pytest.mark.parametrize("subject", SUBJECTS)
def test_many_damaged_files_are_read_right_or_refused(subject: str, tmp_path: Path) -> None:
    fuzz(subject, tmp_path, range(12, 200))
