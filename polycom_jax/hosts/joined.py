"""The life of a program on several hosts: start, watch, end."""

import contextlib
import threading
from collections.abc import Iterator

import jax

from polycom_jax._errors import InputError
from polycom_jax.hosts import watch
from polycom_jax.hosts.config import HostsConfig, Place, find_place
from polycom_jax.hosts.lobby import wait_for_hosts
from polycom_jax.hosts.meeting import HostsError, meet
from polycom_jax.hosts.relay import Relay

CONNECT_S = 25
"""How long JAX may take to connect hosts that have just met: who is missing then is gone."""


@contextlib.contextmanager
def joined(
    config: HostsConfig, *, tell: watch.Tell, common: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Within the block JAX sees the devices of all hosts; on a single host it does nothing.

    It comes before anything that starts a JAX backend, `jax.devices` for instance. An exception on
    one host ends all of them: it is told by `tell`, the others tell theirs, or name this one, and
    every process ends without returning from here.

    Args:
        config: which hosts.
        tell: says an error to the person who runs the program; returns the exit code.
        common: exceptions that all hosts raise at the same place; they go through.

    Raises:
        InputError: hosts are missing when `config.start_timeout_s` is over, or disagree.
    """
    place = find_place(config)
    if place is None:
        yield
        return
    wait_for_hosts(place, config.start_timeout_s)
    relay = None if place.index == 0 else Relay(place.coordinator, config.lost_after_s)
    with _in_time(place, tell):
        _start(place, config, relay.address if relay else place.coordinator)
    first_gone = relay.lost if relay else None
    watch.running = own = watch.Watch(place, config.lost_after_s, tell, first_gone)
    own.start()
    try:
        try:
            yield
        except common:
            meet("the end")
            raise
        meet("the end")
    except common:
        own.finish()
        raise
    except BaseException as error:
        own.fail(error)
    own.finish()


@contextlib.contextmanager
def _in_time(place: Place, tell: watch.Tell) -> Iterator[None]:
    """Ends the process if the block takes longer than `CONNECT_S`."""
    lost = HostsError(
        f"A host was lost while JAX started: not all of {place.count} hosts, which had met, were"
        f" connected at {place.coordinator} within {CONNECT_S} s."
    )
    timer = threading.Timer(CONNECT_S, watch.leave, (lost, tell))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _start(place: Place, config: HostsConfig, coordinator: str) -> None:
    # Its handler of SIGTERM would take the signal from the program's own, or lose it to that one;
    # and Ctrl-C needs the same agreement, which is `agree_on_stop`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            place.count,
            place.index,
            place.devices,
            cluster_detection_method="deactivate",
            # Longer than `_in_time`: when it is over, JAX ends the process with a trace in C++.
            initialization_timeout=round(2 * CONNECT_S + watch.LEAVE_S),
            # JAX's own watch and wait, behind ours.
            heartbeat_timeout_seconds=round(2 * config.lost_after_s + watch.LEAVE_S),
            shutdown_timeout_seconds=round(config.lost_after_s),
        )
    except RuntimeError as error:  # jax.errors.JaxRuntimeError too
        raise InputError(f"JAX cannot start at {place.coordinator}: {error}.") from error
