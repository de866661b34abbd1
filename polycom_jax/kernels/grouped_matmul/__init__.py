"""One matrix a group of rows."""

from polycom_jax.kernels.grouped_matmul.api import grouped_matmul as grouped_matmul
