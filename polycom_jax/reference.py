"""Activations in files of their users: `FILE.py:NAME` or `MODULE:NAME`, and the file's SHA-256.

A reference is pinned by what stands behind it: `FILE.py:NAME#sha256=HEX`. To read what a pinned one
names is to import that file, once its bytes are those of the hash; other bytes are refused.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputError, require

_FORM = re.compile(
    r"(?P<place>[^#]+):(?P<name>[^\W\d]\w*)(?:#sha256=(?P<sha256>[0-9a-f]{64}))?", re.UNICODE
)

OF_A_FILE = (Exception, SystemExit)
"""Whatever a file of a user's raises while it is imported; a script may end itself."""

SHOWN = 12
"""Digits of a hash that messages show."""


def is_reference(text: object) -> bool:
    """Whether a name is of something in a file, and of no row of the table."""
    return isinstance(text, str) and ":" in text


@dataclass(frozen=True)
class Reference:
    """Something in a file.

    Attributes:
        place: a path that ends in .py or has a separator, or the dotted name of a module.
        name: of the object in it.
        sha256: of the file's bytes; None: of whatever stands there.
    """

    place: str
    name: str
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Reads `FILE.py:NAME`, `MODULE:NAME`, and either with `#sha256=HEX` behind it.

        Raises:
            InputError: it is nothing of that form.
        """
        found = _FORM.fullmatch(text)
        if found is None or "://" in text:
            raise InputError(
                f"activation={text!r} must be FILE.py:NAME or MODULE:NAME, of a file on this"
                " machine and a name in it, for instance mine.py:act."
            )
        return cls(**found.groupdict())

    def __str__(self) -> str:
        return f"{self.place}:{self.name}" + (f"#sha256={self.sha256}" if self.sha256 else "")

    @property
    def is_file(self) -> bool:
        """Whether it names a path, and not a module."""
        return self.place.endswith(".py") or os.sep in self.place

    @property
    def identity(self) -> str:
        """What it names, wherever that lies: equal for the same bytes in another place."""
        return f"{self.name}#sha256={self.sha256}"

    @property
    def digest(self) -> str:
        """What names files of results: a file may make two activations of one function."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:SHOWN]

    def pinned(self) -> "Reference":
        """The same with the hash of what stands there now.

        Raises:
            InputError: the file is gone, or is another one than it was.
        """
        if self in _LOADED:  # imported already: what has become of the file since is no matter
            return self
        return Reference(self.place, self.name, hashlib.sha256(self.read()).hexdigest())

    def load(self) -> Any:
        """The object, its file imported once.

        Raises:
            InputError: the file is gone, another one than it was, cannot be imported, or has no
                such name.
        """
        pinned = self.pinned()
        if pinned not in _LOADED:
            _LOADED[pinned] = self._object(pinned)
        return _LOADED[pinned]

    def _object(self, pinned: "Reference") -> Any:
        module = self._module(pinned)
        try:
            if hasattr(module, self.name):
                return getattr(module, self.name)
        except OF_A_FILE as error:  # a module may have a function that makes its names
            raise self._fails(error) from error
        public = [name for name in vars(module) if not name.startswith("_")]
        raise InputError(
            f"activation={self}: {self.file()} has no {self.name!r} (it has"
            f" {', '.join(sorted(public)) or 'no names'})."
        )

    def _module(self, pinned: "Reference") -> Any:
        assert pinned.sha256 is not None
        try:
            if self.is_file:
                return _imported(str(self.file()), pinned.sha256, pinned.read())
            module = importlib.import_module(self.place)
        except InputError:
            raise
        except OF_A_FILE as error:
            raise self._fails(error) from error
        require(
            _runs(module, self.place, pinned),
            f"activation={self._short()}: {self.file()} has changed since this process imported"
            f" {self.place!r}, or since Python kept bytecode of it, which would run as it was;"
            f" `touch` it and restart, or name the file: {self.file()}:{self.name}.",
        )
        return module

    def _fails(self, error: BaseException) -> InputError:
        return InputError(f"activation={self}: {self.place} cannot be imported: {_told(error)}.")

    def read(self) -> bytes:
        """What stands in the file.

        Raises:
            InputError: it is gone, or another one than it was.
        """
        file = self.file()
        try:
            found = file.read_bytes()
        except OSError as error:
            raise InputError(
                f"activation={self._short()}: {file} is not there (from {Path.cwd()}):"
                f" {error.strerror}." + self._way_out()
            ) from error
        now = hashlib.sha256(found).hexdigest()
        require(
            self.sha256 in (None, now),
            f"activation={self._short()}: {file} is another file than the model was made with"
            f" (SHA-256 {(self.sha256 or '')[:SHOWN]} then, {now[:SHOWN]} now)." + self._way_out(),
        )
        return found

    def _short(self) -> str:
        return f"{self.place}:{self.name}"

    def _way_out(self) -> str:
        if self.sha256 is None:
            return ""
        return (
            f" Bring back the file of SHA-256 {self.sha256[:SHOWN]}..., or let `activation` in the"
            f" config name where it lies now; {self._short()} without #sha256 begins another model."
        )

    def file(self) -> Path:
        """The file that it names.

        Raises:
            InputError: no such module, one that is no file of Python's text, or a package around it
                that cannot be imported.
        """
        if self.is_file:
            return Path(os.path.expanduser(self.place))
        origin = self._origin()
        if origin is None or not origin.endswith(".py"):
            raise InputError(
                f"activation={self}: Python finds no module {self.place!r} with a file; of a file"
                f" write its path, ./{self.place}.py:{self.name}." + self._way_out()
            )
        return Path(origin)

    def _origin(self) -> str | None:
        """What Python would import, which runs the packages around it; None: nothing."""
        try:
            spec = importlib.util.find_spec(self.place)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if f"{self.place}.".startswith(f"{missing}."):
                return None
            raise self._fails(error) from error
        except OF_A_FILE as error:
            if sys.modules.get(self.place) is not None:  # what runs has no spec, as __main__
                return None
            raise self._fails(error) from error
        return None if spec is None else spec.origin


_LOADED: dict[Reference, Any] = {}

_RUNNING: dict[str, tuple[Any, str | None]] = {}
"""Module -> its spec, which is new where it is reloaded, and the hash that it was imported at."""


def _runs(module: types.ModuleType, place: str, pinned: Reference) -> bool:
    """Whether a module runs what stands in its file, as far as can be told.

    What another imported before is known by its functions alone.
    """
    spec, sha256 = _RUNNING.get(place, (None, None))
    if spec is None or spec is not module.__spec__:
        if not _was_made_from(module, pinned.read()):
            return False
        sha256 = pinned.sha256
        _RUNNING[place] = module.__spec__, sha256
    return sha256 == pinned.sha256


def _was_made_from(module: types.ModuleType, text: bytes) -> bool:
    """Whether a module has this text's functions, and the bytecode that Python kept is of it, too.

    Python takes bytecode for that of any file of the same second and length. What an import hook
    rewrites is taken as it is.
    """
    spec = module.__spec__
    if spec is None or type(spec.loader) is not SourceFileLoader:
        return True
    try:
        whole = compile(text, str(spec.origin), "exec", dont_inherit=True)
        if spec.loader.get_code(spec.name) != whole:
            return False
    except SyntaxError:
        return False
    written = set(_codes(whole))
    own = [each for each in vars(module).values() if isinstance(each, types.FunctionType)]
    return all(each.__code__ in written for each in own if each.__code__.co_filename == spec.origin)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """It, and those of the functions in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


@functools.cache
def _imported(file: str, sha256: str, text: bytes) -> types.ModuleType:
    """The module that these bytes make; these, and not what may have replaced them since."""
    module = types.ModuleType(f"polycom_activation_{sha256[:SHOWN]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(text, file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _told(error: BaseException) -> str:
    """What went wrong, and in which line of which file."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} in line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}, line {last.lineno})"
