"""Arms that are matched otherwise than by parameters, and the seeds of a study."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.compare.across.cells import stored_config
from experiments.compare.arms import check_widths, within_flops
from experiments.compare.comparing import common_settings
from experiments.compare.config import SCALES, SHAPES
from experiments.compare.studies import STUDIES
from polycom_jax._errors import InputError
from polycom_jax.models import ModelConfig, flops_per_token


def train_flops(cfg: ModelConfig) -> int:
    return flops_per_token(cfg, cfg.context_length, attention="causal").train


@pytest.mark.parametrize("size", ["bytes-0.1m", "bytes-1m"])
def test_an_arm_of_equal_flops_has_the_widest_layer_that_they_allow(size: str):
    study = STUDIES["ablation"]
    base = SHAPES[size]
    most = train_flops(study.arm("swiglu").model(base))
    cfg = study.arm("poly_norm_equal_flops").model(base)
    assert train_flops(cfg) <= most < train_flops(replace(cfg, ffn_width=cfg.hidden_width + 1))
    same = replace(study.arm("poly_norm").model(base), ffn_width=cfg.hidden_width)
    assert cfg == same


def test_a_layer_that_is_cheap_enough_stays_as_it_is():
    base = replace(SHAPES["bytes-0.1m"], activation="relu")
    assert within_flops(base, "gelu").hidden_width == base.hidden_width


def test_flops_that_no_width_has_are_refused():
    one = replace(SHAPES["bytes-0.1m"], activation="poly_norm", ffn_width=1)
    with pytest.raises(InputError, match="more FLOPs than relu at every hidden width up to 1"):
        within_flops(one, "relu")


def test_arms_that_a_model_has_no_room_for_are_refused_together_before_anything_is_trained():
    rows = STUDIES["rows"]
    check_widths(rows.arms, SHAPES["bytes-0.3m"])
    with pytest.raises(InputError, match=r"^rational_a_5_4_groups: groups=8 must divide") as caught:
        check_widths(rows.arms, SHAPES["bytes-0.1m"])
    assert "no arm rational_a_5_4_groups, " in str(caught.value)
    assert ", evonorm_s0, gdn: take another --model, or name the other arms in --arms." in str(
        caught.value
    )


def test_a_study_may_have_seeds_that_another_has_not_seen():
    config = replace(SCALES["cpu"], seeds=16, first_seed=100)
    assert config.result_seeds == range(100, 116)


def test_a_folder_keeps_the_first_of_its_seeds(tmp_path: Path):
    config = replace(SCALES["cpu"], seeds=16, first_seed=100)
    (tmp_path / "settings.json").write_text(json.dumps(common_settings(config)))
    assert stored_config(tmp_path).result_seeds[0] == 100
    assert common_settings(SCALES["cpu"])["first_seed"] is None


def test_seeds_of_results_and_of_the_search_stay_apart():
    with pytest.raises(InputError, match="all seeds below 1,000,000"):
        replace(SCALES["cpu"], seeds=10, first_seed=999_991)
