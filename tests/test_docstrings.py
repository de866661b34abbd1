"""The examples in docstrings are what the functions do."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import polycom_jax

PACKAGE = Path(polycom_jax.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if ">>>" in path.read_text())


def test_there_are_examples():
    assert len(FILES) >= 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_run_as_shown(path: Path):
    parts = ("polycom_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    result = doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp}, report=True)
    assert result.attempted > 0
    assert result.failed == 0
