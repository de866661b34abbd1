"""Waiting for all hosts before JAX does: its own wait ends in a crash that names none of them."""

import contextlib
import json
import socket
import time
from collections.abc import Iterable
from typing import Any

from polycom_jax._errors import InputError
from polycom_jax.hosts.config import Place

RETRY_S = 0.2
"""Between two attempts to reach the first host."""

HELLO_S = 5.0
"""How long a caller may take to say who it is: something else may have found the port."""

VERDICT_S = 10.0
"""How much longer than the first host others wait: it is the one that knows who is missing."""


def named(hosts: set[int], count: int) -> str:
    """ "hosts 1, 3 (of 0 to 7)"."""
    text = ", ".join(map(str, sorted(hosts)))
    return f"host{'s' if len(hosts) > 1 else ''} {text} (of 0 to {count - 1})"


def wait_for_hosts(place: Place, timeout_s: float) -> None:
    """Returns once all hosts are there; the coordinator's port is free again then.

    Raises:
        InputError: some are missing after `timeout_s` seconds, which are named; or hosts disagree
            on how many they are, or on which one each is.
    """
    if place.index == 0:
        _receive(place, timeout_s)
    else:
        _call(place, timeout_s)


def _receive(place: Place, timeout_s: float) -> None:
    """The first host's side: takes calls until everybody is there, and tells all how it ended."""
    deadline = time.monotonic() + timeout_s
    callers: dict[int, socket.socket] = {}
    lines: list[socket.socket] = []  # Strangers, and hosts that do not fit in, too.
    with _listen(place) as server, contextlib.ExitStack() as opened:
        try:
            while missing := set(range(1, place.count)) - callers.keys():
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    caller = opened.enter_context(server.accept()[0])
                except TimeoutError:
                    raise InputError(_missing(place, missing, timeout_s)) from None
                lines.append(caller)
                callers = {i: other for i, other in callers.items() if not _is_gone(other)}
                hello = _read(caller, HELLO_S) or {}
                if hello.keys() == {"index", "count"}:
                    _check(place, hello, callers)
                    callers[hello["index"]] = caller
        except InputError as error:
            _tell(lines, {"error": str(error)})
            raise
        server.close()
        _tell(callers.values(), {"error": None})


def _call(place: Place, timeout_s: float) -> None:
    """Another host's side: calls the first one until it answers."""
    host, _, port = place.coordinator.rpartition(":")
    deadline, why = time.monotonic() + timeout_s, "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=HELLO_S) as line:
                _tell([line], {"index": place.index, "count": place.count})
                verdict = _read(line, timeout_s + VERDICT_S)
        except OSError as error:
            verdict, why = None, str(error)
        if verdict is None:  # It is not up yet, or has gone: then it may come back.
            time.sleep(RETRY_S)
        elif verdict.get("error"):
            raise InputError(verdict["error"])
        else:
            return
    raise InputError(_missing(place, {0}, timeout_s) + f" Last answer: {why}.")


def _missing(place: Place, hosts: set[int], timeout_s: float) -> str:
    return (
        f"Waited {timeout_s:g} s (hosts.start_timeout_s) at {place.coordinator} for"
        f" {named(hosts, place.count)} to start: start the same command there, with its own"
        " --hosts.index unless a cluster gives it, and see that the port can be reached."
    )


def _check(place: Place, hello: dict[str, Any], callers: dict[int, socket.socket]) -> None:
    index, count = hello["index"], hello["count"]
    if count != place.count:
        raise InputError(
            f"host {index} was started as one of {count} hosts, the first as one of {place.count};"
            " give all the same --hosts.count."
        )
    if index in callers or index == 0:
        raise InputError(f"Two hosts were started as --hosts.index {index}; give each its own.")


def _listen(place: Place) -> socket.socket:
    port = int(place.coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, backlog=place.count, dualstack_ipv6=both
        )
    except (OSError, OverflowError) as error:
        raise InputError(
            f"hosts.coordinator={place.coordinator}: the first host cannot listen there ({error});"
            " give another port."
        ) from error


def _tell(lines: Iterable[socket.socket], message: dict[str, Any]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):
            line.sendall(json.dumps(message).encode() + b"\n")


def _read(line: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """One message; None if there is none of ours."""
    line.settimeout(timeout_s)
    with contextlib.suppress(OSError, ValueError), line.makefile("rb") as file:
        message = json.loads(file.readline(65_536))
        return message if isinstance(message, dict) else None
    return None


def _is_gone(line: socket.socket) -> bool:
    line.settimeout(0)
    try:
        return line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
