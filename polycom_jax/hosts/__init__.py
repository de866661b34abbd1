"""Several processes: how they start, wait for each other and end; a single one does none of it."""

from polycom_jax.hosts.config import HostsConfig
from polycom_jax.hosts.processes import HostsError, agree_on_stop, gather, joined, leave, meet

__all__ = ["HostsConfig", "HostsError", "agree_on_stop", "gather", "joined", "leave", "meet"]
