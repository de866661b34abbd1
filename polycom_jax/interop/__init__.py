"""Weights in and out: Hugging Face folders, and the official PolyCom activations; and tasks.

`safetensors` (extra `interop`) is imported where files are read or written, lm-evaluation-harness
(extra `eval`) where its tasks are asked; PyTorch never is.
"""

from polycom_jax.interop import huggingface as huggingface
from polycom_jax.interop import lm_eval as lm_eval
from polycom_jax.interop import upstream as upstream
