"""A run that takes seconds: a minuscule model on a little text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.pretrain import __main__ as pretrain

Run = Callable[..., int]

SETTINGS = """
model:
  preset: tiny
  num_layers: 2
  embed_dim: 32
  num_heads: 2
  num_kv_heads: 2
  head_dim: 16
  gated_width: 32
  context_length: 32
optim: {warmup_steps: 2}
data: {source: SOURCE, tokenizer: bytes, batch_size: 8, document_bytes: 2000}
run: {steps: 6, log_every: 2, eval_every: 3, checkpoint_every: 2, sample_tokens: 5}
"""


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file for `--config`."""
    folder = tmp_path_factory.mktemp("little")
    text = "".join(
        f"The {n}th quick brown fox jumps over {n % 7} lazy dogs.\n" for n in range(1500)
    )
    (folder / "little.txt").write_text(text)
    path = folder / "settings.yaml"
    path.write_text(SETTINGS.replace("SOURCE", str(folder / "little.txt")))
    return path


@pytest.fixture(scope="session")
def run(settings: Path) -> Run:
    """Runs the program in this process; returns its exit code."""

    def program(workdir: Path, *words: str) -> int:
        return pretrain.main(["--config", str(settings), "--workdir", str(workdir), *words])

    return program


@pytest.fixture(scope="session")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run(workdir) == 0
    return workdir
