"""Which processes take part in a run, told by flags or by the cluster."""

import os
import re
from dataclasses import dataclass

from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` would detect

from polycom_jax._errors import InputError, require
from polycom_jax._fields import check_fields

LONGEST_S = 1e6
"""Longest wait that can be asked for; JAX counts milliseconds in 32 bits."""


@dataclass(frozen=True)
class HostsConfig:
    """The processes of a run, one a host; another number of them may resume it.

    On Cloud TPU, SLURM, Open MPI and Kubernetes JAX finds them by itself.

    Attributes:
        coordinator: HOST:PORT of process 0, with a port that is free there; the same everywhere.
        count: number of processes; 1 without the other two: do not use `jax.distributed`.
        index: number of this process, from 0.
        start_timeout_s: seconds to wait at the start for all processes.
        lost_after_s: seconds without a heartbeat after which a process counts as lost, which ends
            the run on all others.
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
            require(value >= 1, f"hosts.{name}={value} must be at least 1 second.")
            require(value <= LONGEST_S, f"hosts.{name}={value} must be at most {LONGEST_S:g}.")
        if (self.coordinator, self.count, self.index) in ((None, None, None), (None, 1, None)):
            return
        require(
            None not in (self.coordinator, self.count, self.index),
            "hosts.coordinator, hosts.count and hosts.index are given together (or none of them, on"
            f" a cluster); here they are {self.coordinator}, {self.count} and {self.index}.",
        )
        require(
            re.fullmatch(r".+:\d+", str(self.coordinator)) is not None,
            f"hosts.coordinator={self.coordinator!r} must be HOST:PORT.",
        )
        count, index = self.count or 0, self.index or 0
        require(count >= 1, f"hosts.count={count} must be at least 1.")
        require(
            0 <= index < count,
            f"hosts.index={index} must be from 0 to {count - 1}, hosts.count={count} less one.",
        )


@dataclass(frozen=True)
class Place:
    """This host among several.

    Attributes:
        coordinator: HOST:PORT of the first.
        count: number of hosts.
        index: which this is.
        devices: the only devices of the machine that are this host's; None: all.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


def find_place(config: HostsConfig) -> Place | None:
    """This host's place, from the config or the cluster; None: there is one host.

    Raises:
        InputError: a cluster is there and does not say enough.
    """
    if config.count == 1:
        return None
    if config.coordinator is not None and config.count is not None and config.index is not None:
        return Place(config.coordinator, config.count, config.index)
    # What `jax.distributed.initialize()` would find; all of it is needed before that is called.
    try:
        coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"),
            None,
            None,
            None,
            None,
            round(config.start_timeout_s),
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise InputError(
            f"The cluster does not say which hosts take part ({error}); give --hosts.coordinator,"
            " --hosts.count and --hosts.index, or --hosts.count 1 for this host alone."
        ) from error
    if count is None or count == 1:
        return None
    if coordinator is None or index is None:
        raise InputError(
            f"The cluster tells of {count} hosts, but not where the first one is and which this"
            " is; give --hosts.coordinator, --hosts.count and --hosts.index."
        )
    return Place(coordinator, count, index, None if devices is None else tuple(devices))
