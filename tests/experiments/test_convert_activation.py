"""`experiments.convert --activation`: what is refused, and when."""

from pathlib import Path

import jax
import pytest
from shapes import SMALL

from experiments.convert import __main__ as convert
from experiments.run.model_loading import Model
from polycom_jax import models
from polycom_jax.data import ByteTokenizer, DataConfig
from polycom_jax.interop.huggingface.families import IN_TORCH
from polycom_jax.table import ACTIVATIONS, get_activation

FITTED = [name for name in ACTIVATIONS if get_activation(name).is_polynomial]


class FittedError(Exception):
    """The fit has begun."""


@pytest.mark.parametrize("name", FITTED)
def test_what_no_folder_can_hold_is_refused_before_it_is_fitted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cfg = models.ModelConfig(**{**vars(SMALL), "activation": "swiglu" if "glu" in name else "silu"})
    params = jax.eval_shape(lambda: models.init(cfg, jax.random.key(0)))
    model = Model(cfg, params, ByteTokenizer(), DataConfig(), tmp_path, None)

    def fitted(*_: object) -> None:
        raise FittedError

    monkeypatch.setattr(convert, "load_model", lambda *args, **how: model)
    monkeypatch.setattr(convert, "check_finite", lambda *args: None)
    monkeypatch.setattr(convert, "swapped", fitted)
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--activation", name]
    if name in IN_TORCH:
        with pytest.raises(FittedError):
            convert.main(words)
    else:
        assert convert.main(words) == 2
        assert f"activation in PyTorch {name!r}" in capsys.readouterr().err
