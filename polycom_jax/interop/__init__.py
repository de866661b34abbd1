"""Weights in and out: Hugging Face folders, and the official PolyCom activations.

`safetensors` (extra `interop`) is imported where files are read or written; PyTorch never is.
"""

from polycom_jax.interop import huggingface as huggingface
from polycom_jax.interop import upstream as upstream
