"""What JAX may take of a device."""

import jax


def bytes_limit() -> int:
    """Bytes that JAX may take of the first device; 0: it does not say, as on CPUs."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))
