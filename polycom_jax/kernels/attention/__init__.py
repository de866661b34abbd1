"""Causal attention: plain in `xla.py`, fused for each kind of device in the other files."""

from polycom_jax.kernels.attention.api import attention as attention
from polycom_jax.kernels.attention.cache import CACHE_AXES as CACHE_AXES
from polycom_jax.kernels.attention.cache import attention_with_cache as attention_with_cache
