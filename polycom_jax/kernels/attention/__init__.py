"""Causal attention: plain in `xla.py`, fused for each kind of device in the other files."""

from polycom_jax.kernels.attention.api import attention as attention
