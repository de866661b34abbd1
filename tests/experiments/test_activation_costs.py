"""What activations cost in a block: `experiments.activations`."""

import pytest

from experiments.activations import block
from experiments.activations.__main__ import ActivationsConfig
from polycom_jax import InputError
from polycom_jax.table import ACTIVATIONS, get_activation


def test_a_width_that_a_row_cannot_have_is_refused_before_others_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
):
    compiled: list[int] = []
    monkeypatch.setattr(block, "_compiled", lambda options, cfg: compiled.append(1))
    chosen = {name: get_activation(name) for name in ACTIVATIONS}
    with pytest.raises(InputError, match=r"groups=.* must divide the hidden width 150"):
        block.costs(ActivationsConfig(gated_width=100), chosen, lambda text: None)
    assert not compiled
