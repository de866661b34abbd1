"""Fused versions of the hot operations: one folder an operation, one file a version.

`implementation=` names one; None takes the backend's best (`kernels.implementations`). The
definitions that all of them are tested against stand in `polycom_jax.activations`.
"""
