"""Flax modules round the library's functions, with no arithmetic of their own."""

from polycom_jax.modules import linen as linen
from polycom_jax.modules import nnx as nnx
