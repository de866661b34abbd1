"""Bounds of a config's numbers."""

from typing import Any

from polycom_jax._errors import require


def at_least(config: Any, least: int, *names: str, prefix: str = "") -> None:
    """Raises `InputError` where one of these fields, or a number in it, is less; None may be."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            require(
                number is None or number >= least,
                f"{prefix}{name}={number} must be at least {least}.",
            )
