"""Transformers as pure functions: a frozen config, a table of parameters, functions of both."""

from polycom_jax.kernels.rope import RopeScaling as RopeScaling
from polycom_jax.models.config import ModelConfig as ModelConfig
from polycom_jax.models.config import MoEConfig as MoEConfig
from polycom_jax.models.decode import generate as generate
from polycom_jax.models.flops import Flops as Flops
from polycom_jax.models.flops import flops_per_token as flops_per_token
from polycom_jax.models.flops import mfu as mfu
from polycom_jax.models.parametrization import as_standard as as_standard
from polycom_jax.models.presets import PRESETS as PRESETS
from polycom_jax.models.presets import preset as preset
from polycom_jax.models.sampling import sample as sample
from polycom_jax.models.transformer import count_active_params as count_active_params
from polycom_jax.models.transformer import count_params as count_params
from polycom_jax.models.transformer import forward as forward
from polycom_jax.models.transformer import hidden as hidden
from polycom_jax.models.transformer import init as init
from polycom_jax.models.transformer import init_cache as init_cache
from polycom_jax.models.transformer import specs as specs
from polycom_jax.models.transformer import unembed as unembed
