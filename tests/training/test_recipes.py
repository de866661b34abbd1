import pytest

from polycom_jax import InputError, models
from polycom_jax.training import RECIPES, recipe


def test_every_preset_has_a_recipe_for_itself():
    assert RECIPES == models.PRESETS
    for name in RECIPES:
        assert recipe(name).model == models.preset(name)


def test_dense_1b_is_trained_as_in_the_paper():
    run = recipe("dense-1b")
    optim = run.optim
    assert run.batch_tokens == 262_144
    assert run.steps * run.batch_tokens == pytest.approx(250e9, rel=1e-6)
    assert optim.warmup_steps == 620_000_000 // run.batch_tokens
    assert optim.peak_learning_rate == 3e-4
    assert optim.final_learning_rate_fraction * optim.peak_learning_rate == pytest.approx(3e-5)
    assert (optim.b1, optim.b2, optim.eps, optim.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert optim.clip_norm == 1.0
    assert not {"norm", "coefficient"} & set(optim.decay_roles)
    assert not run.model.document_mask
    assert (run.model.norm_eps, run.model.rope_theta) == (1e-5, 10_000)


def test_llama_7b_sees_two_trillion_tokens_in_batches_of_four_million():
    run = recipe("llama-7b")
    assert run.batch_tokens == 2**22
    assert run.steps * run.batch_tokens == pytest.approx(2e12, rel=1e-6)
    assert run.optim.warmup_steps == 2000
    assert run.optim.eps == 1e-5
    assert not run.model.document_mask


@pytest.mark.parametrize("name", ["dense-110m", "dense-350m"])
def test_dense_models_of_ours_see_twenty_tokens_a_parameter(name):
    run = recipe(name)
    assert run.batch_tokens == 2**19
    tokens = run.steps * run.batch_tokens
    assert tokens / models.count_params(run.model) == pytest.approx(20, rel=0.05)
    assert run.optim.warmup_steps == run.steps // 20


def test_a_recipe_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="dense-1b"):
        recipe("dense-2b")


def test_the_paper_mixture_is_trained_as_in_its_configuration():
    run = recipe("moe-1b-7b")
    optim = run.optim
    assert run.batch_tokens == 2**22
    assert run.steps * run.batch_tokens == pytest.approx(200e9, rel=1e-4)
    assert optim.warmup_steps * run.batch_tokens == 10_485_760_000
    assert (optim.decay_steps or 0) * run.batch_tokens == pytest.approx(5e12, rel=1e-6)
    assert optim.peak_learning_rate == 4e-4
    assert "norm" in optim.decay_roles
    assert "coefficient" not in optim.decay_roles
    moe = run.model.moe
    assert (moe.num_experts, moe.top_k, moe.normalize_top_k) == (64, 8, False)
    assert (moe.load_balance_weight, moe.router_z_weight) == (0.01, 0.001)
    assert run.model.qk_norm == "full"
    assert run.model.init == "olmo"
    assert (run.model.norm_eps, run.model.rope_theta) == (1e-5, 10_000)
    assert not run.model.document_mask
