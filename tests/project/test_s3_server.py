"""The S3 server of the tests fails exactly as it is told to."""

from __future__ import annotations

import http.client
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.s3_server import Cut, CutRequest, Hold, Slow, Status

DATA = bytes(range(256)) * 40


def fetch(url: str, span: str = "") -> bytes:
    request = urllib.request.Request(url, headers={"Range": span} if span else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return bytes(answer.read())


def upload(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, data=DATA, method="PUT", headers={"Content-Type": "image/jpeg"})


def test_objects_are_read_through_the_proxy_whole_and_in_ranges(s3):
    s3.server.put("some folder/a.tar", DATA)

    assert fetch(s3.http_url("some%20folder/a.tar")) == DATA
    assert fetch(s3.http_url("some%20folder/a.tar"), "bytes=100-299") == DATA[100:300]
    assert [(seen.status, seen.range, seen.sent) for seen in s3.proxy.seen("GET")] == [
        (200, "", len(DATA)),
        (206, "bytes=100-299", 200),
    ]


def test_faults_meet_the_requests_they_are_meant_for_and_no_other(s3):
    s3.server.put("a", DATA)
    s3.server.put("b", DATA)
    s3.proxy.add(Status(503, key="/b", skip=1), Cut(1000, key="/a"), Slow(0.01, key="/a"))

    assert fetch(s3.http_url("b")) == DATA
    with pytest.raises(urllib.error.HTTPError, match="503") as refused:
        fetch(s3.http_url("b"))
    refused.value.close()
    with pytest.raises(http.client.IncompleteRead) as cut:
        fetch(s3.http_url("a"))
    assert len(cut.value.partial) == 1000
    assert fetch(s3.http_url("a")) == fetch(s3.http_url("b")) == DATA


def test_an_upload_that_is_cut_leaves_nothing_and_a_lost_answer_leaves_the_object(s3):
    s3.proxy.add(CutRequest(100, method="PUT", key="lost"), Cut(0, method="PUT", key="done"))

    for key in ("lost", "done"):
        with pytest.raises((ConnectionError, urllib.error.URLError)):
            urllib.request.urlopen(upload(s3.http_url(key)), timeout=20).close()
    assert s3.server.keys() == ["done"]
    assert s3.server.get("done") == DATA


def test_a_client_killed_while_its_request_is_held_has_not_uploaded_anything(s3):
    hold = Hold(method="PUT")
    s3.proxy.add(hold)
    client = subprocess.Popen([sys.executable, "-c", UPLOAD, s3.http_url("never")])

    assert hold.reached.wait(30)
    client.kill()
    client.wait()

    hold.release()

    assert s3.proxy.wait_for(1, "PUT")
    assert [seen.status for seen in s3.proxy.seen("PUT")] == [0]
    assert s3.server.keys() == []


UPLOAD = """
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], data=b"x" * 10, method="PUT"))
"""


def test_an_s3_client_finds_the_server_by_its_environment_alone(s3):
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, s3.url("x/y")],
        env=s3.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "b'hello'\n", done.stderr
    assert s3.server.objects("x") == {"y": b"hello"}


CLIENT = """
import sys, fsspec
fs, path = fsspec.url_to_fs(sys.argv[1])
fs.pipe_file(path, b"hello")
print(fs.cat_file(path))
"""
