"""examples/server.py under clients that send too much, too slowly, or too often."""

import contextlib
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from server_support import Server, httpx

import fastgru

if sys.platform != "linux":
    pytest.skip("reads the memory of a process in /proc", allow_module_level=True)

INPUTS, SECONDS, CONNECTIONS = 4, 1.5, 12
LIMITS = ("--rows", "4", "--seconds", str(SECONDS), "--connections", str(CONNECTIONS))
MB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    layer = fastgru.GRU(3, return_sequences=True)
    layer.build((None, None, INPUTS))
    fastgru.save(layer, folder / "m.safetensors")
    with Server(folder / "m.safetensors", folder / "s.npz", *LIMITS) as running:
        running.layer = layer
        yield running


@pytest.fixture(autouse=True)
def serves_afterwards(server):
    """Whatever was sent: a session gives the layer's numbers."""
    yield
    server.client.close()
    server.client = httpx.Client(base_url=server.client.base_url, timeout=60)
    x = np.random.default_rng(0).normal(size=(1, 1, INPUTS)).astype("float32")
    session = server.begin()
    np.testing.assert_array_equal(server.step(session, x[0, 0])[0], server.layer(x)[0, 0])
    server.client.delete(f"/sessions/{session}")


def peak(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer(connection):
    """Return what comes until the server closes the connection."""
    got = b""
    try:
        while some := connection.recv(1 << 16):
            got += some
    except ConnectionResetError:
        pass
    return got


def post(path, *headers):
    lines = (f"POST {path} HTTP/1.1", "Host: here", *headers, "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("session", ["there is none", "there is one"])
@pytest.mark.parametrize("how", ["declared", "in chunks", "both", "to another path"])
def test_a_large_body_is_not_kept(server, session, how):
    """Refused by its header, and not read: 200 MB cost nothing."""
    name = "nobody" if session == "there is none" else server.begin()
    before = peak(server)
    path = f"/sessions/{name}/step" if how != "to another path" else "/nowhere"
    chunks = how in ("in chunks", "both")
    size = ["Transfer-Encoding: chunked"] if chunks else [f"Content-Length: {200 * MB}"]
    if how == "both":  # the length of a step, of which the chunks have more
        size.append(f"Content-Length: {4 * INPUTS}")
    sent = 0
    with connect(server) as connection:
        try:
            connection.sendall(post(path, *size))
            while sent < 200 * MB:
                connection.sendall((b"100000\r\n" if chunks else b"") + bytes(MB))
                connection.sendall(b"\r\n" if chunks else b"")
                sent += MB
        except OSError:  # the server has closed the connection
            pass
    assert sent < 200 * MB
    assert peak(server) < before + 20 * MB
    for one in [name] if session == "there is one" else []:
        assert server.steps(one) == 0
        server.client.delete(f"/sessions/{one}")


REFUSED = {
    "no length": ((), b"", b" 411 "),
    "too long": ((f"Content-Length: {4 * INPUTS + 1}",), b"", b" 413 "),
    "far too long": (("Content-Length: 99999999999999999999",), b"", b" 413 "),
    "too short": (("Content-Length: 3",), b"123", b" 422 "),
    "no number": (("Content-Length: many",), b"", b" 400 "),
    "negative": (("Content-Length: -16",), b"", b" 400 "),
    "two lengths": (("Content-Length: 16", "Content-Length: 17"), b"", b" 400 "),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_lengths_are_refused_before_the_body(server, kind):
    headers, body, code = REFUSED[kind]
    session = server.begin()
    with connect(server) as connection:
        connection.sendall(post(f"/sessions/{session}/step", "Connection: close", *headers) + body)
        assert code in answer(connection).partition(b"\r\n")[0]
    assert server.steps(session) == 0
    server.client.delete(f"/sessions/{session}")


def test_a_session_is_looked_for_before_the_body(server):
    with connect(server) as connection:
        connection.sendall(post("/sessions/nobody/step", "Content-Length: 16"))  # and no body
        assert b" 404 " in connection.recv(1 << 16).partition(b"\r\n")[0]


SLOW = {
    "nothing is sent": b"",
    "headers that do not end": b"POST /sessions HTTP/1.1\r\nHost: here\r\n",
    "a body that does not come": post("/sessions/{session}/step", "Content-Length: 16"),
    "half a body": post("/sessions/{session}/step", "Content-Length: 16") + b"12345678",
    "a second request that does not end": post("/nowhere", "Content-Length: 0") + b"POST /s",
}


@pytest.mark.alone
@pytest.mark.parametrize("kind", SLOW)
def test_what_is_not_complete_in_time_is_cut_off(server, kind):
    session = server.begin()
    start = time.monotonic()
    with connect(server) as connection:
        connection.sendall(SLOW[kind].replace(b"{session}", session.encode()))
        answer(connection)
    assert SECONDS * 0.7 < time.monotonic() - start < SECONDS + 5
    assert server.steps(session) == 0
    server.client.delete(f"/sessions/{session}")


@pytest.mark.alone
@pytest.mark.parametrize("begin", [b"POST /sessions HTTP/1.1\r\nA: ", SLOW["half a body"][:-7]])
def test_a_byte_now_and_then_does_not_help(server, begin):
    session = server.begin()
    start = time.monotonic()
    with connect(server) as connection:
        connection.sendall(begin.replace(b"{session}", session.encode()))
        try:
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.2)
                if time.monotonic() - start > SECONDS + 8:
                    break
        except OSError:
            pass
    assert time.monotonic() - start < SECONDS + 5
    assert server.steps(session) == 0
    server.client.delete(f"/sessions/{session}")


def sockets(server):
    """Return how many sockets the server has open."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    count = 0
    for file in folder.iterdir():
        try:
            count += file.readlink().name.startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return count


@pytest.mark.alone
def test_who_does_not_take_the_answers_is_cut_off(server):
    """Requests one after another, whose answers nobody reads, keep no connection."""
    server.client.close()
    time.sleep(0.5)
    before = sockets(server)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: here\r\n\r\n" * 3000)
        end = time.monotonic() + 90  # to answer until all buffers are full takes most of it
        while sockets(server) > before and time.monotonic() < end:
            time.sleep(0.2)
        assert sockets(server) == before


def test_a_connection_is_kept_from_request_to_request(server):
    """Longer than the time for one request, with pauses that are shorter."""
    with connect(server) as connection:
        for _ in range(4):
            connection.sendall(post("/nowhere", "Content-Length: 2") + b"12")
            got = b""
            while not got.endswith(b"}"):
                got += connection.recv(1 << 16)
            assert b" 404 " in got.partition(b"\r\n")[0]
            time.sleep(SECONDS / 3)


def test_connections_are_limited(server):
    """Those beyond the limit are closed, and there is room again when others have gone."""
    held = [connect(server) for _ in range(CONNECTIONS + 10)]
    try:
        time.sleep(0.3)
        closed = 0
        for one in held:
            one.setblocking(False)
            try:
                closed += one.recv(1) == b""
            except ConnectionResetError:
                closed += 1
            except BlockingIOError:
                pass
        assert 10 <= closed < len(held)
    finally:
        for one in held:
            one.close()
    time.sleep(0.3)


def test_a_link_in_the_place_of_the_sessions_is_refused_at_the_start(server, tmp_path):
    """And not when the server ends, when all sessions would be lost."""
    fastgru.save(server.layer, tmp_path / "m.safetensors")
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "s.npz").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(AssertionError, match="expected a file or nothing there, got a link"),
        Server(tmp_path / "m.safetensors", tmp_path / "s.npz"),
    ):
        pass
    assert (tmp_path / "victim").read_bytes() == b"precious"
