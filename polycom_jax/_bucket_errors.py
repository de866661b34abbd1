"""What a bucket's server and its client raise, as the system's own errors."""

import contextlib
import errno
from collections.abc import Iterator

_PASSING = frozenset({408, 429, 500, 502, 503, 504})


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """Errors of a bucket's client as those of a disk."""
    try:
        yield
    except Exception as error:
        number, text = _as_of_disk(error)
        if not number:
            raise
        raise OSError(number, text, place) from error


def _as_of_disk(error: Exception) -> tuple[int, str]:
    """The system's number for an error of a bucket's client, 0 for others', and a line."""
    from google.auth import exceptions

    code, said = getattr(error, "code", None), " ".join(str(error).split())[:200] or repr(error)
    network = code in _PASSING or _is_of_network(error) or getattr(error, "retryable", False)
    if code == 404:
        return errno.ENOENT, "there is no such object or bucket"
    if code in (401, 403):
        return errno.EACCES, f"the account may not do that ({said})"
    if network:
        return errno.EHOSTDOWN, f"the bucket's server does not answer ({said})"
    if isinstance(error, exceptions.GoogleAuthError):
        return errno.EACCES, (
            f"there are no Google credentials ({said}); `gcloud auth application-default login`"
            " makes some, or GOOGLE_APPLICATION_CREDENTIALS names a file that holds them"
        )
    return 0, ""


def _is_of_network(error: Exception) -> bool:
    import requests
    from google.auth.exceptions import TransportError
    from google.cloud.storage.exceptions import DataCorruption

    own = (ConnectionError, TimeoutError)
    return isinstance(error, (*own, requests.RequestException, TransportError, DataCorruption))
