"""Folders as `transformers` writes and reads them: `load`, `save`.

Llama with SiLU, GELU or ReLU gates, OLMoE, and Apertus (xIELU) are read and written as what they
are. Any other model of ours is written with the PyTorch file that computes it (`torch_models/`), so
that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it. Motif's models
are not read: their attention is differential, which ours is not.
"""

from polycom_jax.interop.huggingface.folder import WeightDtype as WeightDtype
from polycom_jax.interop.huggingface.folder import load as load
from polycom_jax.interop.huggingface.folder import save as save
from polycom_jax.interop.huggingface.generation import Generation as Generation
from polycom_jax.interop.huggingface.generation import read_generation as read_generation
