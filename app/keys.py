"""API keys: a file that holds their hashes, what writes it, and what reads it again whenever it has changed.

A key is `lt_<id>_<secret>`, the secret being 256 random bits: so one SHA-256 is hash enough, there is nothing to guess.
The id names the key in lists and logs, and is the owner of what the key makes. A revoked key stays in the file, so its
id is never given to anybody else. A key that may only look sees what another one makes, for as long as both are good.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.redaction import redact

log = logging.getLogger(__name__)

_KEY = re.compile(r"lt_([0-9a-f]{12})_([0-9a-f]{64})", re.ASCII)
_ID_PATTERN = r"^[0-9a-f]{12}$"


class KeysError(Exception):
    """The file of keys cannot be read or written, or is not one; the message is one line for the operator."""


class UnknownKey(KeysError):
    """No key has this id."""


class ApiKey(BaseModel):
    """A key as the file holds it. A limit that is None is the one of the settings; 0 is none at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=_ID_PATTERN)
    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the whole key, in hex.")
    created_at: int
    revoked_at: int | None = None
    read_only: bool = False
    of: str | None = Field(
        None,
        pattern=_ID_PATTERN,
        description="Key whose videos one that may only look sees; None: it sees none.",
    )
    max_queued: int | None = Field(None, ge=0)
    max_running: int | None = Field(None, ge=0)
    seconds_per_day: float | None = Field(None, ge=0)
    requests_per_minute: int | None = Field(None, ge=0)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[ApiKey] = Field(default_factory=list)


class KeyFile:
    """Reads and changes the file. Changes are atomic, and one at a time over all processes of the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[ApiKey]:
        """Every key, the revoked ones too. Raises `KeysError`."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise KeysError(f"cannot read the API keys in {self.path}: {error.strerror}") from error
        try:
            keys = _File.model_validate_json(data).keys
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise KeysError(
                f"{self.path} is no file of API keys: {f'{place}: ' if place else ''}{problem['msg']}"
            ) from error
        if len({key.id for key in keys}) < len(keys):
            raise KeysError(f"{self.path} is no file of API keys: two have the same id")
        return keys

    def create(
        self,
        name: str,
        *,
        of: str | None = None,
        max_queued: int | None = None,
        max_running: int | None = None,
        seconds_per_day: float | None = None,
        requests_per_minute: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Adds a key, and the file when there is none. Returns the key's entry and the key, which nothing keeps.

        With `of`, the id or the name of a key, it may look at what that one makes, and do nothing else.
        Raises `KeysError`, `UnknownKey` among them.
        """
        with self._changing() as keys:
            watched = None if of is None else _making(keys, of).id
            known = {key.id for key in keys}
            while (key_id := secrets.token_hex(6)) in known:
                pass
            token = f"lt_{key_id}_{secrets.token_hex(32)}"
            key = ApiKey(
                id=key_id,
                name=name,
                sha256=_hash(token),
                created_at=int(time.time()),
                read_only=watched is not None,
                of=watched,
                max_queued=max_queued,
                max_running=max_running,
                seconds_per_day=seconds_per_day,
                requests_per_minute=requests_per_minute,
            )
            keys.append(key)
        return key, token

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key for good; again changes nothing. Raises `KeysError`, `UnknownKey` among them."""
        with self._changing(must_exist=True) as keys:
            for at, key in enumerate(keys):
                if key.id == key_id:
                    if key.revoked_at is None:
                        keys[at] = key.model_copy(update={"revoked_at": int(time.time())})
                    return keys[at]
            raise UnknownKey(f"there is no API key with the id {redact(key_id)}")

    @contextmanager
    def _changing(self, *, must_exist: bool = False) -> Iterator[list[ApiKey]]:
        """The keys to be changed in place; written when the block ends well."""
        lock_path = self.path.with_name(f"{self.path.name}.lock")
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeysError(f"cannot write API keys to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # not on the file itself, which every change replaces
            keys = self.read() if must_exist or self.path.exists() else []
            before = list(keys)
            yield keys
            if keys != before:
                self._write(keys)
        finally:
            os.close(lock)

    @staticmethod
    def _keep_access(old: Path, descriptor: int) -> None:
        """Whoever could read the file before can read the one that replaces it. Raises OSError."""
        try:
            status = old.stat()
        except FileNotFoundError:
            return
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))

    def _write(self, keys: list[ApiKey]) -> None:
        # Through a link, as secrets are often mounted: the file it names is replaced, not the link.
        target = self.path.resolve()
        try:
            descriptor, temporary = tempfile.mkstemp(
                prefix=f".{target.name}.", dir=target.parent
            )  # mode 0600
        except OSError as error:
            raise KeysError(f"cannot write API keys to {self.path}: {error.strerror}") from error
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                self._keep_access(target, descriptor)
                file.write(_File(keys=keys).model_dump_json(indent=2, exclude_none=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with suppress(OSError):
                Path(temporary).unlink()
            raise KeysError(f"cannot write API keys to {self.path}: {error.strerror}") from error


def _making(keys: Sequence[ApiKey], named: str) -> ApiKey:
    """The key with this id or name that can make videos now. Raises `KeysError`."""
    found = [key for key in keys if named in (key.id, key.name)]
    able = [key for key in found if key.revoked_at is None and not key.read_only]
    if not found:
        raise UnknownKey(f"there is no API key {redact(named)}")
    if not able:
        raise KeysError(
            f"the API key {redact(named)} makes no videos: it is revoked, or may only look itself"
        )
    if len(able) > 1:
        raise KeysError(f"there are {len(able)} API keys {redact(named)}: name one by its id")
    return able[0]


class Keyring:
    """The keys that open this service now. Safe to share between threads.

    Looks at the file's status each time it is asked (microseconds), and reads it when that has changed: a key that was
    revoked opens nothing from then on. A file that cannot be read opens nothing either.
    """

    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)
        self._reading = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._keys: dict[str, ApiKey] = {}
        self._problem: str | None = None

    def find(self, token: str) -> ApiKey | None:
        """The key that this text is; None for one that is wrong, unknown or revoked. Raises `KeysError`."""
        keys = self._current()
        match = _KEY.fullmatch(token)
        key = keys.get(match[1]) if match else None
        # Compared even when there is nothing to compare with: how long it takes tells nothing.
        same = hmac.compare_digest(_hash(token), key.sha256 if key else "0" * 64)
        return key if key is not None and same and _opens(key, keys) else None

    def active(self, key_id: str) -> ApiKey | None:
        """The key with this id unless it is revoked, or the one is that it looks at. Raises `KeysError`."""
        keys = self._current()
        key = keys.get(key_id)
        return key if key is not None and _opens(key, keys) else None

    def all(self) -> list[ApiKey]:
        """Every key, the revoked ones too: their videos may still be running. Raises `KeysError`."""
        return list(self._current().values())

    def check(self) -> None:
        """Raises `KeysError` when the file cannot be used."""
        self._current()

    def _current(self) -> dict[str, ApiKey]:
        with self._reading:
            stamp = self._status()
            if stamp is None or stamp != self._stamp:
                self._read()
                self._stamp = stamp
            if self._problem is not None:
                raise KeysError(self._problem)
            return self._keys

    def _status(self) -> tuple[int, ...] | None:
        try:
            status = self._file.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _read(self) -> None:
        try:
            self._keys, problem = {key.id: key for key in self._file.read()}, None
        except KeysError as error:
            self._keys, problem = {}, str(error)
        if problem is not None and problem != self._problem:
            log.error("every request is refused: %s", problem)
        elif problem is None:
            log.info("%d API keys", sum(key.revoked_at is None for key in self._keys.values()))
        self._problem = problem


def _opens(key: ApiKey, keys: Mapping[str, ApiKey]) -> bool:
    if key.revoked_at is not None or key.of is None:
        return key.revoked_at is None
    watched = keys.get(key.of)
    return watched is not None and watched.revoked_at is None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
