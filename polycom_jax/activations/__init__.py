"""The mathematics, plain. `polycom_jax` exports the fused versions, from its `kernels`."""

from polycom_jax.activations.classic import geglu as geglu
from polycom_jax.activations.classic import gelu as gelu
from polycom_jax.activations.classic import gelu_tanh as gelu_tanh
from polycom_jax.activations.classic import reglu as reglu
from polycom_jax.activations.classic import relu as relu
from polycom_jax.activations.classic import relu2 as relu2
from polycom_jax.activations.classic import silu as silu
from polycom_jax.activations.classic import swiglu as swiglu
from polycom_jax.activations.classic import tanh as tanh
from polycom_jax.activations.learnable import poly_norm_glu as poly_norm_glu
from polycom_jax.activations.learnable import poly_prelu as poly_prelu
from polycom_jax.activations.learnable import poly_relu_norm as poly_relu_norm
from polycom_jax.activations.polynomial import init_coeffs as init_coeffs
from polycom_jax.activations.polynomial import poly_norm as poly_norm
from polycom_jax.activations.polynomial import poly_relu as poly_relu
from polycom_jax.activations.polynomial import polycom as polycom
