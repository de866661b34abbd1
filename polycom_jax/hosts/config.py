"""Which processes take part in a run."""

import re
from dataclasses import dataclass

from polycom_jax._errors import InputError, require
from polycom_jax._fields import check_fields


@dataclass(frozen=True)
class HostsConfig:
    """The processes of a run, one on each machine; another number of them may resume it.

    On Cloud TPU, SLURM, Open MPI and Kubernetes JAX finds them by itself.

    Attributes:
        coordinator: HOST:PORT, an address of process 0 with a free port; the same for all
            processes.
        count: number of processes. 1, with neither of the two others given, runs without
            `jax.distributed`.
        index: number of this process, from 0.
        start_timeout_s: seconds to wait for all processes at the start.
        lost_after_s: seconds without a heartbeat after which a process counts as lost. JAX then
            ends all others by SIGABRT, with its own message.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    start_timeout_s: float = 300.0
    lost_after_s: float = 20.0

    def __post_init__(self) -> None:
        check_fields(self, "hosts.")
        for name in ("start_timeout_s", "lost_after_s"):
            value = getattr(self, name)
            require(
                1 <= value <= 1e6, f"hosts.{name}={value} must be at least 1 second, at most 1e6."
            )
        address, count, index = given = (self.coordinator, self.count, self.index)
        if given in ((None, None, None), (None, 1, None)):
            return
        if address is None or count is None or index is None:
            text = "are given together (or none of them, on a cluster); here they are"
            raise InputError(f"hosts.coordinator, hosts.count and hosts.index {text} {given}.")
        fits = re.fullmatch(r".+:\d+", address) is not None
        require(fits, f"hosts.coordinator={address!r} must be HOST:PORT.")
        require(count >= 1, f"hosts.count={count} must be at least 1.")
        require(0 <= index < count, f"hosts.index={index} must be from 0 to {count - 1}.")
