"""Patience with a store far away, and what its libraries say in words that one may show.

What fails for a moment (5xx, cut connections, time-outs) is tried again, with growing pauses; what will not get
better by itself (no permission, no credentials) is told at once. Secrets of an address reach no message.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from .errors import AlexshardError, WrongCall

T = TypeVar("T")

PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between five attempts; a store that is down for longer is told to the user
BUILD_NEEDS = "a build lists, reads, writes and removes objects below its prefix"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NEARLY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(:/|::)")
# User and password end at the last @ before the first slash; keys of S3 hold slashes, ports do not.
_USER = re.compile(r"://([^/]*|[^/:@]*:(?!\d{1,5}/).*)@", re.DOTALL)
# The libraries of the stores are known by the names of their errors, since they need not be installed.
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
    *("DefaultCredentialsError", "RefreshError"),
}
_NO_SERVER = {"EndpointConnectionError", "ClientConnectorError", "ConnectTimeoutError"}


def is_address(text: str) -> bool:
    """Whether a text is the address of a store, rather than a folder.

    >>> is_address("s3://bucket/prefix"), is_address("shards/s3"), is_address("/data/a:b")
    (True, False, False)
    """
    return _ADDRESS.match(text) is not None


def folder_at(text: str) -> Path:
    """The folder that a text names which is no address.

    Raises:
        WrongCall: it was meant to be one, and a folder `s3:` here is not what anybody wants.
    """
    if _NEARLY.match(text) and not Path(text.partition("/")[0]).exists():
        raise WrongCall(
            f"{masked(text)} is no address of a store, and no folder that is there",
            remedy="an address is as s3://BUCKET/PREFIX, without `::`; a new folder of such a name as ./NAME",
        )
    return Path(text)


def masked(address: str) -> str:
    """An address as messages show it: without user, password and what follows a question mark.

    >>> masked("sftp://me:secret@host/sets/a"), masked("https://host/a?token=secret"), masked("s3://bucket/a")
    ('sftp://***@host/sets/a', 'https://host/a?***', 's3://bucket/a')
    """
    return re.sub(r"\?.*", "?***", _USER.sub("://***@", address, count=1), flags=re.DOTALL)


def holds_credentials(address: str) -> bool:
    return _USER.search(address) is not None


class Patience:
    """Does things to the store at one address, and does them again while that may help."""

    def __init__(self, address: str, *, pauses: tuple[float, ...] = PAUSES_S, needs: str = BUILD_NEEDS) -> None:
        self.shown = masked(address).rstrip("/")
        self._needs = needs
        self._secrets = _secrets(address)
        self._pauses = pauses
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Nothing is tried again from here on."""
        self._stopped.set()

    def run(self, what: str, name: str, action: Callable[[], T]) -> T:
        """Do it, and again while it may get better.

        Raises:
            FileNotFoundError, FileExistsError: they mean something to the caller.
            WrongCall: this user may not, or the store's library refuses the words of the call.
            AlexshardError: the last attempt has failed too.
        """
        for pause in (*self._pauses, None):
            try:
                return action()
            except (FileNotFoundError, FileExistsError, AlexshardError):
                raise
            except (TypeError, AttributeError, NotImplementedError, AssertionError):
                raise  # ours to mend, and no better the next time
            except PermissionError as error:
                raise self._refused(what, name, error) from None
            except Exception as error:
                if _is_refusal(error):
                    raise self._refused(what, name, error) from None
                if type(error).__name__ == "ParamValidationError":
                    raise WrongCall(f"{self.shown}: {self.said(error)}", remedy="mend the address") from None
                # Many that were refused together must not come back together.
                if pause is None or self._stopped.wait(pause * random.uniform(1, 1.5)):
                    raise self.failed(what, name, error) from None
        raise AssertionError("the last attempt returns or raises")

    def _refused(self, what: str, name: str, error: Exception) -> WrongCall:
        return WrongCall(
            f"may not {what} {self._shown(name)}: {self.said(error)}",
            why=self._needs,
            remedy="mend the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...) "
            "or ask for the permission",
        )

    def failed(self, what: str, name: str, error: Exception) -> AlexshardError:
        if type(error).__name__ in _NO_SERVER:
            return self.unreachable(error)
        return AlexshardError(
            f"cannot {what} {self._shown(name)}: {self.said(error)}",
            why=f"{len(self._pauses) + 1} attempts over {sum(self._pauses):.0f} s and more have failed",
            remedy="when the store is well again, run the same command again",
        )

    def unreachable(self, error: Exception) -> AlexshardError:
        named = "endpoint (AWS_ENDPOINT_URL)" if self.shown.startswith(("s3:", "s3a:")) else "address"
        return AlexshardError(
            f"{self.shown} cannot be reached: {self.said(error)}",
            remedy=f"mend the network or the {named}; then run the same command again",
        )

    def _shown(self, name: str) -> str:
        return f"{self.shown}/{name}" if name else self.shown

    def said(self, error: Exception) -> str:
        """The words of a library, without secrets and on one line."""
        text = str(error) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(masked(word) if "://" in word else word for word in text.split())


def _is_refusal(error: Exception) -> bool:
    """Whether a store's words mean that this user may not; not every library has a PermissionError."""
    # aiohttp's errors have `status`, and warn who asks them for their `code`.
    status = getattr(error, "status", None) or getattr(error, "code", "")
    return (
        type(error).__name__ in _NO_CREDENTIALS
        or str(status) in {"401", "403"}
        or str(error).startswith("Forbidden")
    )


def _secrets(address: str) -> list[str]:
    """Parts of an address that no message may show, longest first; libraries tell them decoded too."""
    user = found[1] if (found := _USER.search(address)) else ""
    query = urlsplit(_USER.sub("://", address, count=1)).query
    values = [pair.partition("=")[2] for pair in query.split("&")]
    secrets = {user, user.partition(":")[2], query, *values}
    return sorted((secrets | set(map(unquote, secrets))) - {""}, key=len, reverse=True)
