"""JAX's coordination service, in process 0: what of it `jax.distributed` does not show.

That module neither lets the service say who is missing at the start, nor shows its client, whose
barriers end and name who did not come. Collectives wait for ever; Orbax takes this client too.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax._src.lib import _jax  # pyright: ignore[reportPrivateUsage]

from polycom_jax._errors import InputError
from polycom_jax.hosts.config import HostsConfig

Place = tuple[str, int, int, Sequence[int] | None]
"""Address of process 0, number of processes, index of this one, its devices (None: all here)."""


def find_place(config: HostsConfig) -> Place | None:
    """This process's place, from the config or the cluster; None: there is one process."""
    coordinator, count, index, devices = config.coordinator, config.count, config.index, None
    try:
        if count is None:  # as in `jax.distributed.initialize`
            first, limit = os.environ.get("JAX_COORDINATOR_ADDRESS"), round(config.start_timeout_s)
            detect = ClusterEnv.auto_detect_unset_distributed_params
            coordinator, count, index, devices = detect(first, None, None, None, None, limit)
        if count is None or count == 1:
            return None
        if coordinator is None or index is None:
            raise ValueError(
                f"it names {count} processes, not where process 0 is and which this one is"
            )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        text = f"The cluster does not say which processes take part ({error}); give"
        flags = "--hosts.coordinator, --hosts.count and --hosts.index, or --hosts.count 1 for one"
        raise InputError(f"{text} {flags}.") from error
    return coordinator, count, index, devices


def start(place: Place, config: HostsConfig, end: Callable[[Exception], object]) -> None:
    """`jax.distributed.initialize`, in which JAX names who is missing and aborts, or `end` does."""
    # Its handler would take SIGTERM from the program's own; `agree_on_stop` serves Ctrl-C too.
    jax.config.update("jax_enable_preemption_service", False)
    limit = round(config.start_timeout_s)
    text = (
        f"Waited {limit + 10} s (hosts.start_timeout_s and 10) for process 0 of {place[1]} at"
        f" {place[0]}: start the same command there, and see that the port can be reached."
    )
    silence = threading.Timer(limit + 10, end, (InputError(text),))  # later than its own verdict
    silence.start()
    # By default the service waits longer than its clients, which know only themselves.
    serve = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = partial(serve, cluster_register_timeout=limit)
    try:
        jax.distributed.initialize(
            *place,
            cluster_detection_method="deactivate",
            initialization_timeout=limit + 20,
            heartbeat_timeout_seconds=round(config.lost_after_s),
            shutdown_timeout_seconds=round(config.lost_after_s),
        )
    except RuntimeError as error:  # jax.errors.JaxRuntimeError too
        raise InputError(f"JAX cannot start at {place[0]}: {error}.") from error
    finally:
        silence.cancel()
        _jax.get_distributed_runtime_service = serve


def store() -> Any:
    """The client: keys with values, and barriers."""
    client = distributed.global_state.client
    assert client is not None, "jax.distributed.initialize has not been called."
    return client
