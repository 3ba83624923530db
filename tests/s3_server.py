"""A real S3 protocol server on loopback, and a proxy before it that fails on demand.

    def test_..(s3: S3):
        s3.server.put("archives/a.tar", data)                     # straight into the bucket, past the proxy
        s3.proxy.add(Status(503, times=2), Cut(after=1000, method="GET", key="a.tar"))
        run_with(s3.environment, "alexshard", "build", s3.url("archives"), ...)
        assert s3.server.objects("out") == {...}                  # name below the prefix -> bytes
        assert s3.proxy.seen("PUT") == [...]                      # what went through the proxy

The server is moto's, a process of its own that ends with the tests; each test gets a bucket of its own and a proxy
of its own. Clients find the proxy through `s3.environment` (AWS_ENDPOINT_URL and made-up credentials, nothing
else); plain HTTP reads work too, from `s3.http_url(key)`, with ranges. Nothing leaves the machine.

A fault meets the requests that fit it (method; `key`, a part of the path and query), leaves out the first `skip`
of them, meets `times` and is spent; among those not spent the first that was added wins.

    Status(503)         answers so without asking the server
    CutRequest(after)   reads that many bytes of what is sent and closes: the server hears nothing of it
    Cut(after)          the server does its work, the client gets that many bytes of the body and then the end;
                        where the body is empty, as after an upload, it gets nothing at all
    Spoil()             passes on what is sent with its last byte changed
    SpoilAnswer()       passes on the answer's body with its last byte changed
    Unheard(header)     passes on what is sent without that header, as a server that does not know it
    Slow(seconds)       answers so much later
    Hold()              answers when `release()` is called; `reached` is set when the request is there, so that a
                        test can kill a process at a chosen upload without a clock

`proxy.away()` closes every connection without an answer until `proxy.back()`; `proxy.narrow(bytes_per_s, delay_s)`
makes all answers share a line of that width, each beginning so much later.

The wait of Slow and Hold comes before the server hears of the request, and the server never does if the client is
gone by then: who is killed or loses patience meanwhile has not uploaded anything.
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import pytest

# moto asks that a reader says who it is, not that it proves it.
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # or a client without credentials would ask the network for some
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
_SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests end, however they end
"""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
_PIECE = 16 << 10  # of an answer on a narrow line
_buckets = itertools.count()


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong, and with which requests; see the page's head."""

    times: int = 1
    skip: int = 0
    method: str = ""
    key: str = ""

    def meets(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts those that fit."""
        if not self.times or self.method not in ("", method) or self.key not in path:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class Status(Fault):
    status: int


@dataclass(slots=True)
class CutRequest(Fault):
    after: int


@dataclass(slots=True)
class Cut(Fault):
    after: int


@dataclass(slots=True)
class Spoil(Fault):
    pass


@dataclass(slots=True)
class SpoilAnswer(Fault):
    pass


@dataclass(slots=True)
class Unheard(Fault):
    header: str


@dataclass(slots=True)
class Slow(Fault):
    seconds: float


@dataclass(slots=True)
class Hold(Fault):
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it ended; status 0: the connection was cut."""

    method: str
    path: str  # with query, unquoted: /bucket/key?uploads=
    status: int
    received: int  # bytes of body from the client
    sent: int  # bytes of body to the client
    range: str  # as asked, "bytes=0-99"


class FaultProxy:
    """Passes requests on to the server, but for those that a fault meets."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self._lock = threading.Condition()
        self._faults: list[Fault] = []
        self._seen: list[Seen] = []
        self.closed = threading.Event()
        self.is_away = False
        self._line: tuple[float, float] | None = None  # bytes a second, seconds before an answer
        self._free_at = 0.0  # when the line has sent what it was given
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        """Nothing goes wrong any more; requests that are held go on."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            if isinstance(fault, Hold):
                fault.release()

    def away(self) -> None:
        self.is_away = True

    def back(self) -> None:
        self.is_away = False

    def narrow(self, bytes_per_s: float, delay_s: float = 0.0) -> None:
        self._line = bytes_per_s, delay_s

    def send(self, data: bytes, write: Callable[[bytes], object]) -> None:
        """Write an answer's body, as fast as the line is wide."""
        if self._line is None:
            write(data)
            return
        width, delay = self._line
        self.closed.wait(delay)
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic()) + len(piece) / width
                wait = self._free_at - time.monotonic()
            self.closed.wait(wait)
            write(piece)

    def spent(self) -> bool:
        """Whether every fault has met all the requests that it should."""
        with self._lock:
            return not any(fault.times for fault in self._faults)

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.meets(method, path)), None)

    def saw(self, seen: Seen) -> None:
        with self._lock:
            self._seen.append(seen)
            self._lock.notify_all()

    def seen(self, method: str = "", key: str = "") -> list[Seen]:
        """Requests that have ended, first first."""
        with self._lock:
            return [seen for seen in self._seen if method in ("", seen.method) and key in seen.path]

    def wait_for(self, count: int, method: str = "", key: str = "", timeout: float = 60) -> bool:
        """Whether so many such requests have ended before the time is up."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self.seen(method, key)) >= count, timeout)

    def close(self) -> None:
        self.closed.set()
        self.clear()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    timeout = 30  # of a client that keeps its connection and says nothing

    def _serve(self) -> None:
        path, received, told = unquote(self.path), 0, False

        def tell(status: int, sent: int) -> None:
            nonlocal told
            if not told:
                told = True
                span = self.headers.get("Range", "")
                self.proxy.saw(Seen(self.command, path, status, received, sent, span))

        if self.proxy.is_away:
            self.close_connection = True
            tell(0, 0)
            return
        fault = self.proxy.fault(self.command, path)
        size = int(self.headers.get("Content-Length", 0))
        try:
            if isinstance(fault, CutRequest):
                received = len(self.rfile.read(min(fault.after, size)))
                self.close_connection = True
                return
            body = self.rfile.read(size)
            received = len(body)
            if received < size:
                self.close_connection = True  # the client was killed: half an upload is none
                return
            if isinstance(fault, Spoil) and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if isinstance(fault, Unheard):
                del self.headers[fault.header]
            self._wait(fault)
            if isinstance(fault, Slow | Hold) and self._client_is_gone():
                self.close_connection = True
                return
            if isinstance(fault, Status):
                status, headers, answer = fault.status, {"Content-Type": "application/xml"}, _error(fault.status)
            else:
                status, headers, answer = self._ask(body)
            if isinstance(fault, SpoilAnswer) and answer:
                answer = answer[:-1] + bytes([answer[-1] ^ 1])
            cut = isinstance(fault, Cut)
            if cut:
                self.close_connection = True
                if not answer:
                    return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(answer)))
            answer = answer[: fault.after] if isinstance(fault, Cut) else answer
            # Before it is sent, so that a client that has its answer finds itself in `seen`.
            tell(0 if cut else status, len(answer))
            self.end_headers()
            self.proxy.send(answer, self.wfile.write)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        finally:
            tell(0, 0)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _wait(self, fault: Fault | None) -> None:
        if isinstance(fault, Slow):
            self.proxy.closed.wait(fault.seconds)
        elif isinstance(fault, Hold):
            fault.reached.set()
            fault.released.wait()

    def _client_is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        if not any(name.lower() == "authorization" for name in headers):
            headers |= _SIGNED
        with closing(http.client.HTTPConnection("127.0.0.1", self.proxy.server_port)) as connection:
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        # The length of an answer to HEAD is that of the object; of others it is counted anew.
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in _HOP_BY_HOP or (self.command == "HEAD" and name.lower() == "content-length")
        }
        return answer.status, kept, content

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what was asked is in `seen`."""


def _error(status: int) -> bytes:
    code = {403: "AccessDenied", 503: "SlowDown"}.get(status, "InternalError")
    return (
        f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>asked for by the test</Message></Error>'.encode()
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of the server, seen past the proxy."""

    port: int
    name: str

    def put(self, key: str, data: bytes) -> None:
        self._request("PUT", f"/{self.name}/{quote(key)}", data)

    def get(self, key: str) -> bytes:
        return self._request("GET", f"/{self.name}/{quote(key)}")

    def delete(self, key: str) -> None:
        self._request("DELETE", f"/{self.name}/{quote(key)}")

    def keys(self, prefix: str = "") -> list[str]:
        """At most 1,000, as one answer of the server holds."""
        listed = self._request("GET", f"/{self.name}?list-type=2&prefix={quote(prefix)}").decode()
        assert "<IsTruncated>true" not in listed
        return re.findall(r"<Key>([^<]*)</Key>", listed)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix, by the rest of its name."""
        start = prefix.rstrip("/") + "/"
        return {key.removeprefix(start): self.get(key) for key in self.keys(start)}

    def unfinished_uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        return re.findall(r"<Key>([^<]*)</Key>", self._request("GET", f"/{self.name}?uploads").decode())

    def begin_upload(self, key: str) -> None:
        """A multipart upload that nobody will finish."""
        self._request("POST", f"/{self.name}/{quote(key)}?uploads")

    def create(self) -> None:
        self._request("PUT", f"/{self.name}")

    def _request(self, method: str, path: str, body: bytes = b"") -> bytes:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request(method, path, body=body, headers=_SIGNED)
            answer = connection.getresponse()
            data = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {data[:300]!r}"
        return data


@dataclass(frozen=True, slots=True)
class S3:
    """One test's bucket and the proxy before it."""

    server: Bucket
    proxy: FaultProxy

    def url(self, key: str) -> str:
        return f"s3://{self.server.name}/{key}"

    def http_url(self, key: str) -> str:
        return f"{self.proxy.url}/{self.server.name}/{key}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the proxy: to be added to its environment."""
        return {**_CREDENTIALS, "AWS_ENDPOINT_URL": self.proxy.url}


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Where the session's server listens."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_CREDENTIALS},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        port = server.stdout.readline()
        assert port.strip(), "the S3 server did not start"
        yield int(port)
        with suppress(BrokenPipeError):
            server.stdin.close()
        server.kill()  # its threads may still hold a connection


@pytest.fixture
def s3(s3_port: int) -> Iterator[S3]:
    """A fresh bucket behind a proxy without faults."""
    bucket = Bucket(s3_port, f"bucket-{os.getpid()}-{next(_buckets)}")
    bucket.create()
    proxy = FaultProxy(s3_port)
    try:
        yield S3(bucket, proxy)
    finally:
        proxy.close()
