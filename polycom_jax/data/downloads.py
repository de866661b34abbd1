"""An end to waiting for servers: TFDS opens its downloads without any time-out."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

SILENT_S = 60.0
"""A server that sends nothing for so long has gone."""


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """In the block, a connection that TFDS opens fails once it has been silent for `SILENT_S`.

    The error names the server. TFDS tries anew ten times where not even the head of an answer came,
    so that a server which takes connections and says nothing ends a run after a quarter of an hour.
    It has no option for this, nor has the session that it opens: `requests` is told where it sends.
    """
    from requests.adapters import HTTPAdapter

    send, before = HTTPAdapter.send, socket.getdefaulttimeout()

    def impatient(self: HTTPAdapter, request: Any, *args: Any, **options: Any) -> Any:
        if not args and options.get("timeout") is None:
            options["timeout"] = SILENT_S
        return send(self, request, *args, **options)

    HTTPAdapter.send = impatient
    socket.setdefaulttimeout(SILENT_S)  # for ftp
    try:
        yield
    finally:
        HTTPAdapter.send = send
        socket.setdefaulttimeout(before)
