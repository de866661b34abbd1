"""Waiting for each other, with a time-out and names, and values that are split over hosts."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # `jax.distributed` shows no client for keys and barriers

from polycom_jax._errors import InputError
from polycom_jax.hosts.lobby import named

Tree = TypeVar("Tree")

WAIT_S = 600.0
"""How long hosts wait for each other, at a meeting and between two steps, before they give up."""

_COUNTS: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
"""How often this host came to a meeting of a name: JAX's barriers serve once."""


class HostsError(RuntimeError):
    """Another host is missing, has ended, or does something else."""


def store() -> Any:
    """JAX's client of the key-value store on the first host.

    Of the public functions only collectives would do, which wait for ever and name nobody; Orbax
    takes this one too.
    """
    client = distributed.global_state.client
    assert client is not None, "jax.distributed.initialize has not been called."
    return client


def meet(what: str, values: Mapping[str, Any] | None = None, *, timeout_s: float = WAIT_S) -> None:
    """Returns once all hosts have come here, with the same `values`; at once on a single host.

    Args:
        what: name of the occasion, for messages too.
        values: name -> a JSON-able value on which hosts must agree.
        timeout_s: how long to wait.

    Raises:
        HostsError: hosts are missing after `timeout_s`; they are named.
        InputError: a host has other values; it is named, with the first that differs.
    """
    _compare(what, gather(what, dict(values or {}), timeout_s=timeout_s))


def gather(what: str, value: Any, *, timeout_s: float = WAIT_S) -> dict[int, Any]:
    """Returns what each host has come here with, by host, once all have.

    Args:
        what: name of the occasion, for messages too.
        value: JSON-able.
        timeout_s: how long to wait.

    Raises:
        HostsError: hosts are missing after `timeout_s`; they are named.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return {index: value}
    client = store()
    place = f"polycom_jax/meet/{what}/{next(_COUNTS[what])}/"
    client.key_value_set(f"{place}{index}", json.dumps(value, sort_keys=True))
    try:
        client.wait_at_barrier(place, round(1000 * timeout_s))
    except jax.errors.JaxRuntimeError as error:
        if missing := set(range(count)) - entries(place).keys():
            raise HostsError(
                f"Waited {timeout_s:g} s for {named(missing, count)} to come to: {what}."
            ) from error
        raise
    return {host: json.loads(text) for host, text in entries(place).items()}


def entries(place: str) -> dict[int, str]:
    """What hosts have written under `place`, by host."""
    found = store().key_value_dir_get(place)
    return {int(key.rpartition("/")[2]): value for key, value in found}


def _compare(what: str, values: dict[int, dict[str, Any]]) -> None:
    first = values.pop(0)
    for host, own in sorted(values.items()):
        for name in sorted(first.keys() | own.keys()):
            if first.get(name) != own.get(name):
                raise InputError(
                    f"Hosts differ in {what}: {name} is {own.get(name)!r} on host {host} and"
                    f" {first.get(name)!r} on host 0; give all the same command, code and files"
                    " (the workdir on a disk that all share)."
                )


def fetch(tree: Tree) -> Tree:
    """The arrays as NumPy arrays on each host, also those that are split over hosts.

    Every host calls it, since they exchange their parts; it is for small trees, or single leaves.
    """

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)
