"""What the index says of the files is checked, and it itself too."""

import builtins
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polycom_jax import InputError, _files
from polycom_jax.data import index
from polycom_jax.data.pieces import sha256


def written(folder: Path) -> dict[str, Any]:
    """An index of one shard with tokens, beside it."""
    data = np.array([9, 1, 2], np.uint16).tobytes()
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "000003.bin").write_bytes(data)
    counts = {"documents": 1, "bytes": 2, "lost": 0, "replaced": 0}
    full = {"pieces": [3], "ends": [3], "sha256": [sha256(data)], "counts": counts}
    none = {"pieces": [], "ends": [], "sha256": [], "counts": counts, "lengths": []}
    splits = {"train": full | {"lengths": [[2, 1]]}, "heldout": none}
    body = {"dtype": "uint16", "eot": 9, "begin": [], "splits": splits, "files": {}}
    index.write_index(folder, body)
    return body


def test_an_index_leads_to_the_tokens(tmp_path: Path):
    body = written(tmp_path)
    assert index.read_index(tmp_path) == body
    store = index.open_split(tmp_path, body, "train")
    assert store.tokens.tolist() == [9, 1, 2, 9]
    assert store.documents_longer_than(1) == 1


def test_prepared_data_that_a_disk_refuses_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    body = written(tmp_path)
    refused = OSError(errno.ESTALE, "Stale file handle")
    left = [refused, refused]
    real = builtins.open

    def fake(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path).endswith(".bin") and left:
            raise left.pop()
        return real(path, *rest, **options)

    monkeypatch.setattr(_files, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(builtins, "open", fake)
    index.check_files(tmp_path, body)
    left = [refused] * 3
    with pytest.raises(OSError, match=r"Stale file handle.*000003\.bin"):
        index.check_files(tmp_path, body)
    (tmp_path / "train" / "000003.bin").unlink()
    with pytest.raises(InputError, match=r"damaged \(train/000003\.bin is missing\)"):
        index.check_files(tmp_path, body)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-9], lambda b: b.replace(b"uint16", b"uint32"), lambda b: b"[1]"]
)
def test_a_damaged_index_is_told(tmp_path: Path, change: Any):
    written(tmp_path)
    path = tmp_path / "index.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=r"damaged \(index\.json.*delete that folder"):
        index.read_index(tmp_path)
