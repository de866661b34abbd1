"""How each preset is trained: numbers, and where they are from."""

from dataclasses import dataclass

from polycom_jax import models
from polycom_jax._errors import unknown
from polycom_jax._fields import check_range
from polycom_jax.models import ModelConfig
from polycom_jax.training.optimizer import OptimConfig


@dataclass(frozen=True)
class Recipe:
    """A model and its training run.

    Attributes:
        model: the preset.
        optim: how it is updated.
        batch_size: sequences of `model.context_length` a step, over all processes.
        steps: updates.
    """

    model: ModelConfig
    optim: OptimConfig
    batch_size: int
    steps: int

    def __post_init__(self) -> None:
        check_range(self, "at least 1", "batch_size", "steps")

    @property
    def batch_tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.model.context_length


_RECIPES: dict[str, Recipe] = {
    # Ours, for two CPU cores and some minutes on 9 MB of Python. So short a run wants a high rate,
    # a short warm-up and many small steps.
    "tiny": Recipe(
        models.preset("tiny"),
        OptimConfig(peak_learning_rate=5e-3, warmup_steps=40),
        batch_size=8,
        steps=400,
    ),
    # Ours: rate and tokens a step of GPT-3 Small (Brown et al. 2020, table 2.1: 125M parameters,
    # 6e-4, 0.5M tokens); 20 tokens a parameter (Hoffmann et al. 2022) make 2.2B tokens, 4,200
    # steps; a twentieth of them warms up.
    "dense-110m": Recipe(
        models.preset("dense-110m"),
        OptimConfig(peak_learning_rate=6e-4, warmup_steps=210),
        batch_size=512,
        steps=4_200,
    ),
    # Ours: rate and tokens a step of GPT-3 Medium (the same table: 350M parameters, 3e-4, 0.5M
    # tokens); length and warm-up as above, of 6.8B tokens.
    "dense-350m": Recipe(
        models.preset("dense-350m"),
        OptimConfig(peak_learning_rate=3e-4, warmup_steps=650),
        batch_size=512,
        steps=13_000,
    ),
    # The paper's dense model: the official script has 3e-4 to 3e-5, warm-up over 620M tokens, 64
    # sequences of 4096 (run_pretrain.sh); the model cards say 250B tokens of RedPajama. The batch
    # of the published runs is not known. Decay as Megatron's, which exempts whatever has one
    # dimension: norms and PolyCom coefficients.
    "dense-1b": Recipe(
        models.preset("dense-1b"),
        OptimConfig(peak_learning_rate=3e-4, warmup_steps=2_365),
        batch_size=64,
        steps=953_674,
    ),
    # Llama-2 7B (Touvron et al. 2023, arXiv 2307.09288, section 2.2): AdamW 0.9/0.95 with eps 1e-5,
    # 3e-4 to a tenth of it after 2,000 steps of warm-up, decay 0.1, clip 1.0, 4M tokens a step,
    # 2.0T in all.
    "llama-7b": Recipe(
        models.preset("llama-7b"),
        OptimConfig(peak_learning_rate=3e-4, warmup_steps=2_000, eps=1e-5),
        batch_size=1_024,
        steps=476_837,
    ),
    # Ours: as "tiny".
    "moe-tiny": Recipe(
        models.preset("moe-tiny"),
        OptimConfig(peak_learning_rate=5e-3, warmup_steps=40),
        batch_size=8,
        steps=400,
    ),
    # OLMoE-1B-7B-0924_PolyNorm.yml: 4e-4, 1,024 sequences of 4096, warm-up over 10.5B tokens, a
    # cosine to a tenth over 5T of which the published runs saw 200B (README, "200B tokens"); norms
    # decay too, PolyCom coefficients do not.
    "moe-1b-7b": Recipe(
        models.preset("moe-1b-7b"),
        OptimConfig(
            peak_learning_rate=4e-4,
            warmup_steps=2_500,
            decay_steps=1_192_092,
            decay_roles=("matrix", "embedding", "router", "norm"),
        ),
        batch_size=1_024,
        steps=47_684,
    ),
}

RECIPES: tuple[str, ...] = tuple(_RECIPES)
"""The names that `recipe` knows: one for each preset."""


def recipe(name: str) -> Recipe:
    """The training run of the preset called `name`.

    Raises:
        InputError: no such recipe.
    """
    if name not in _RECIPES:
        raise unknown("recipe", name, _RECIPES)
    return _RECIPES[name]
