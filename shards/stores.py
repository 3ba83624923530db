"""Opening a store: the file system that fsspec has for an address, with time-outs, and refusals in words."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from .errors import WrongCall
from .patience import Patience, holds_credentials, masked

CONNECT_S, ANSWER_S = 10, 60  # S3 may take most of a minute to put the parts of an upload together
S3_SCHEMES = frozenset({"s3", "s3a"})
GOOGLE_SCHEMES = frozenset({"gs", "gcs"})
_WEB = frozenset({"http", "https"})
_EXTRAS = {**dict.fromkeys(S3_SCHEMES, "s3"), **dict.fromkeys(GOOGLE_SCHEMES, "gcs")}
# Parameters of a query that let somebody in, and change each time: tokens, and what signs an address of Amazon,
# Google or Azure (whose names have two or three letters).
_CREDENTIAL = re.compile(
    r"[^=]*(token|secret|signature|password|passwd|credential|api_?key|access_?key|key-?pair|auth)|x-(amz|goog)-"
    r"|(key|pass|pwd|policy|expires|googleaccessid|sig|s[vestpr]|srt|spr|sip|sdd|ses|sk[estv]|skoid|sktid)=",
    re.IGNORECASE,
)


def open_store(
    address: str, patience: Patience, *, answer_s: float = ANSWER_S, connections: int | None = None
) -> tuple[Any, str]:
    """The fsspec file system of an address, a new one, and the path of the address in it, without a last slash.

    Args:
        patience: says what the address is called in messages; repeating what fails is left to it.
        answer_s: how long S3 may be silent.
        connections: to S3 at a time; None: as many as its library thinks right (10).

    Raises:
        WrongCall: there is no such kind of store, its library is missing, or the address holds credentials.
        AlexshardError: the store cannot be reached.
    """
    scheme = address.partition("://")[0].lower()
    if scheme in _EXTRAS and holds_credentials(address):
        raise WrongCall(
            f"{patience.shown} holds credentials",
            why="addresses end up in logs and in the history of a shell",
            remedy="leave them to the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...)",
        )
    if scheme in _EXTRAS and not urlsplit(address).netloc:
        raise WrongCall(f"{patience.shown} names no bucket", remedy=f"an address is as {scheme}://BUCKET/PREFIX")
    try:
        import fsspec
    except ImportError:
        raise WrongCall(
            f"{patience.shown} lies in a store, and fsspec, which reads stores, is not installed",
            remedy=f"pip install '.[{_EXTRAS.get(scheme, 's3')}]' in the clone of alexshard",
        ) from None
    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme in S3_SCHEMES:
        # Repeating is done in `Patience`, in one place: three layers of it would take minutes to give up.
        config = {"retries": {"total_max_attempts": 1}, "connect_timeout": CONNECT_S, "read_timeout": answer_s}
        options["config_kwargs"] = config | ({"max_pool_connections": connections} if connections else {})
    if scheme in _WEB:
        with suppress(ImportError):  # fsspec says what is missing
            import aiohttp

            # By itself it gives up after five minutes, however much has come.
            limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_s)
            options["client_kwargs"] = {"timeout": limits}
    try:
        fs, path = fsspec.url_to_fs(address, **options)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        raise WrongCall(
            f"{patience.shown} needs a library that is not installed: {patience.said(error)}",
            remedy=f"pip install '.[{extra}]' in the clone of alexshard"
            if extra
            else "install what fsspec asks for",
        ) from None
    except ValueError as error:
        raise WrongCall(
            f"{patience.shown} is no address of a store: {patience.said(error)}",
            remedy="s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or another that fsspec knows",
        ) from None
    except Exception as error:
        raise patience.unreachable(error) from None
    if scheme in S3_SCHEMES:
        fs.retries = 2
    return fs, path.rstrip("/")


def local_name(address: str) -> str:
    """A name for what is kept on this machine about an address; it changes with no password, token or signature.

    What else a query says is part of the name: it may well choose among sets.
    """
    before, _, query = address.partition("?")
    kept = [pair for pair in query.split("&") if pair and not _CREDENTIAL.match(pair)]
    named = "?".join([masked(before).rstrip("/"), *kept, *(["***"] if query else [])])
    return hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()[:24]
