"""Many hosts: how they find each other, wait for each other, and notice that one is gone.

A host is one process with its own devices; hosts are counted from 0. The one with index 0, the
first, writes files. A program on one host starts none of this and pays nothing for it.
"""

from polycom_jax.hosts.config import HostsConfig
from polycom_jax.hosts.joined import joined
from polycom_jax.hosts.meeting import HostsError, fetch, gather, meet
from polycom_jax.hosts.watch import agree_on_stop, leave, together

__all__ = [
    "HostsConfig",
    "HostsError",
    "agree_on_stop",
    "fetch",
    "gather",
    "joined",
    "leave",
    "meet",
    "together",
]
