"""A way to the first host that does not break when it goes.

JAX ends a process, by a crash with a stack trace, as soon as its connection to the first host
breaks, and takes no handler for it (the one its client accepts cannot be called from Python: it
raises `std::bad_cast`). So JAX's client is given a port of its own process, and all it says goes
through here. When the first host goes, that connection stays, silent, and what is to be done is
left to `watch`.
"""

import contextlib
import socket
import threading
import time

RETRY_S = 0.1
"""Between two attempts to reach a first host that is not up yet."""

CHUNK = 1 << 16


class Relay:
    """Listens on a port of this machine, and passes on to the first host what comes in.

    Attributes:
        address: HOST:PORT to connect to instead of the first host's.
        lost: set when a connection to the first host has broken.

    Args:
        coordinator: HOST:PORT of the first host.
        timeout_s: how long it may take to come up, and how long a connection may be silent though
            something was sent before it counts as broken: a machine without power says nothing.
    """

    def __init__(self, coordinator: str, timeout_s: float) -> None:
        host, _, port = coordinator.rpartition(":")
        self._target, self._timeout_s = (host.strip("[]"), int(port)), timeout_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.lost = threading.Event()
        self._start(self._accept)

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            self._start(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        far = self._reach()
        if far is None:
            near.close()
            return
        self._start(self._pass_back, far, near)
        with contextlib.suppress(OSError):
            _pass_on(near, far)
            # JAX's client has closed its side: it has ended in good order.
            far.shutdown(socket.SHUT_WR)

    def _pass_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            _pass_on(far, near)
        self.lost.set()  # and `near` stays open

    def _reach(self) -> socket.socket | None:
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                far = socket.create_connection(self._target, timeout=self._timeout_s)
                far.settimeout(None)
                self._notice_silence(far)
                return far
            time.sleep(RETRY_S)
        return None

    def _notice_silence(self, far: socket.socket) -> None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        probes = {"TCP_KEEPIDLE": self._timeout_s / 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 5}
        limits = {"TCP_USER_TIMEOUT": 1000 * self._timeout_s}
        for name, value in (probes | limits).items():
            if (option := getattr(socket, name, None)) is not None:  # not every system has all
                far.setsockopt(socket.IPPROTO_TCP, option, max(round(value), 1))

    def _start(self, target: object, *args: object) -> None:
        assert callable(target)
        threading.Thread(target=target, args=args, name="polycom_jax.relay", daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until `source` is closed."""
    while chunk := source.recv(CHUNK):
        target.sendall(chunk)
