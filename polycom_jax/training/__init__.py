"""Training of any model (`step`), and of the library's own (`model_step`).

What is minimised: `loss`. How: `optimizer`, `schedules`, `recipes`. What is carried: `state`,
`batches`, `loss_stats`, `loss_scale`. What comes out: `evaluate`. Checkpoints: `checkpoint` saves
and restores by `writer` and `restore`; `metadata` and `checksums` say what is in one, `scores` how
good it is; `quarantine`, `in_bucket` and `orbax_errors` deal with damaged ones, buckets and
failures.
"""

from typing import Any

from polycom_jax._errors import old_name
from polycom_jax.training.batches import batch_rows as batch_rows
from polycom_jax.training.batches import put_batch as put_batch
from polycom_jax.training.checkpoint import Checkpoints as Checkpoints
from polycom_jax.training.checkpoint import latest_step as latest_step
from polycom_jax.training.evaluate import evaluate as evaluate
from polycom_jax.training.evaluate import make_eval_step as make_eval_step
from polycom_jax.training.loss import cross_entropy as cross_entropy
from polycom_jax.training.model_step import make_model_step as make_model_step
from polycom_jax.training.model_step import model_loss as model_loss
from polycom_jax.training.optimizer import Multipliers as Multipliers
from polycom_jax.training.optimizer import OptimConfig as OptimConfig
from polycom_jax.training.optimizer import make_optimizer as make_optimizer
from polycom_jax.training.optimizer import make_schedule as make_schedule
from polycom_jax.training.recipes import RECIPES as RECIPES
from polycom_jax.training.recipes import Recipe as Recipe
from polycom_jax.training.recipes import recipe as recipe
from polycom_jax.training.state import TrainState as TrainState
from polycom_jax.training.state import abstract_state as abstract_state
from polycom_jax.training.state import make_init as make_init
from polycom_jax.training.state import make_state as make_state
from polycom_jax.training.state import model_specs as model_specs
from polycom_jax.training.state import start_state as start_state
from polycom_jax.training.state import state_from as state_from
from polycom_jax.training.step import Layout as Layout
from polycom_jax.training.step import SummedLoss as SummedLoss
from polycom_jax.training.step import make_train_step as make_train_step
from polycom_jax.training.weight_average import average_of as average_of


def __getattr__(name: str) -> Any:
    return old_name(__name__, name, {"token_nats": cross_entropy})
