"""Streaming sessions over HTTP: one model, one row of a stream per session, steps in batches.

    pip install ".[server]"
    python examples/server.py model.safetensors --sessions sessions.npz

    POST   /sessions            begins a session: {"session": "...", "steps": 0}
    POST   /sessions/ID/step    I float32 in, H float32 out, little-endian; the header has `steps`
    GET    /sessions/ID         the number of its steps
    DELETE /sessions/ID         ends a session
    POST   /save                writes all sessions to the file, as the server does at its end

A step of sixty rows reads the weights once, like a step of one row. So requests that arrive within
the window are one step of their rows. Each gets the same bits as if it were alone.

A body is read after its session and its length are known, and no further than a step needs. A
request that is not complete within the time given, and a connection beyond the number given, are
cut off. What a server on the open net needs besides (TLS, who may call) is a proxy's work.

The sessions in the file survive a crash. If the server then has fewer steps than the client has
sent, the client sends the missing steps again and gets the same answers, bit for bit.
"""

import argparse
import asyncio
import secrets
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

import fastgru
from fastgru.io.replacing import expect_replaceable, replacing

# A refused request's body up to this size is received and dropped, and the connection is kept; else
# the connection is closed.
SMALL_BODY = 64 << 10

Waiting = tuple[int, np.ndarray, "asyncio.Future[tuple[bytes, int]]"]


class Sessions:
    """The row of each session, the number of its steps, and the states of all rows.

    Parameters
    ----------
    layer : GRU, RNN or Sequential
        Built.
    rows : int
        The largest number of sessions.
    """

    def __init__(self, layer: Any, rows: int) -> None:
        self.stream = layer.stream(rows)
        self.inputs = layer.weights[0].shape[0]
        self.rows: dict[str, int] = {}
        self.steps = np.zeros(rows, np.int64)
        self._free = list(reversed(range(rows)))
        self._weights = 0
        for weight in layer.get_weights():
            self._weights = zlib.crc32(weight.tobytes(), self._weights)

    def begin(self) -> str:
        """Begin a session and return its name."""
        if not self._free:
            raise HTTPException(503, "all rows are taken: end a session, or serve more rows")
        name, row = secrets.token_hex(16), self._free.pop()
        self.stream.reset([row])
        self.steps[row] = 0
        self.rows[name] = row
        return name

    def row(self, name: str) -> int:
        """Return a session's row."""
        if name not in self.rows:
            raise HTTPException(404, "no such session: begin one with POST /sessions")
        return self.rows[name]

    def end(self, name: str) -> None:
        """End a session and free its row."""
        self._free.append(self.row(name))
        del self.rows[name]

    def snapshot(self) -> dict[str, Any]:
        """Return copies of all that is saved; later steps do not change them."""
        rows = np.array([*self.rows.values()], np.intp)
        return {
            "names": np.array([*self.rows], "U32"),
            "steps": self.steps[rows],
            "weights": self._weights,
            **{f"state_{i}": state[rows] for i, state in enumerate(self._states())},
        }

    def restore(self, path: Path) -> None:
        """Restore the sessions of a file; ValueError if they are of another model."""
        with np.load(path, allow_pickle=False) as saved:
            if saved["weights"] != self._weights:
                raise ValueError(f"{path}: sessions of a model with other weights")
            names = saved["names"].tolist()
            if len(names) > len(self._free):
                raise ValueError(f"{path}: {len(names)} sessions, and {len(self._free)} rows")
            rows = [self._free.pop() for _ in names]
            self.rows = dict(zip(names, rows, strict=True))
            self.steps[rows] = saved["steps"]
            states = self._states()
            for i, state in enumerate(states):
                state[rows] = saved[f"state_{i}"]
            self.stream.state = states if len(states) > 1 else states[0]

    def _states(self) -> list[np.ndarray]:
        state = self.stream.state
        return state if isinstance(state, list) else [state]


def write(path: Path, snapshot: dict[str, Any]) -> None:
    """Replace a file by a snapshot in one step, so that it is complete also after a crash."""
    with replacing(path) as file:
        np.savez(file, **snapshot)


async def body_of(request: Request, size: int) -> bytes:
    """Return a body of ``size`` bytes; of one that says it has more, nothing is read."""
    # uvicorn has refused what is no number, and reads as many bytes as the number says.
    length = request.headers.get("content-length")
    # Of a body in chunks the length beside it says nothing.
    if length is None or "transfer-encoding" in request.headers:
        raise HTTPException(411, "expected a Content-Length")
    expected = f"expected {size // 4} float32, {size} bytes, got {length[:20]} bytes"
    if int(length) > size:
        raise HTTPException(413, expected)
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "the body is not complete") from None
    if len(body) != size:
        raise HTTPException(422, expected)
    return body


def limited(seconds: float, connections: int) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits that uvicorn does not have.

    Parameters
    ----------
    seconds : float
        A request must be complete so long after its connection, or its first byte. A client must
        take answers in such a time too, also those that wait when the connection is closed.
    connections : int
        More are closed at once.
    """

    class Limited(H11Protocol):
        deadline: asyncio.TimerHandle | None = None
        full: asyncio.TimerHandle | None = None
        was: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                transport.abort()
            else:
                self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.forget()
            self.resume_writing()

        def pause_writing(self) -> None:
            super().pause_writing()  # the client does not take what waits for it
            self.full = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.full is not None:
                self.full.cancel()
                self.full = None

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.end_soon()

        def end_soon(self) -> None:
            """Let the rest of an answer be sent before the connection ends, for a short time."""
            if self.transport.is_closing():
                self.loop.call_later(seconds, self.transport.abort)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:  # nobody reads the rest of the body
                headers = dict(self.headers)
                length = headers.get(b"content-length")
                if length is None or b"transfer-encoding" in headers or int(length) > SMALL_BODY:
                    self.transport.close()
            self.end_soon()

        def watch(self) -> None:
            """Let the time run while a request is not complete."""
            state = self.conn.their_state
            if state is not self.was and state is not h11.SEND_BODY:
                self.forget()  # the request is complete, or another one begins
            self.was = state
            if state in (h11.IDLE, h11.SEND_BODY) and self.deadline is None:
                self.deadline = self.loop.call_later(seconds, self.transport.abort)

        def forget(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

    return Limited


class Batcher:
    """Collects steps for a short time, and computes them together.

    Parameters
    ----------
    sessions : Sessions
    window : float
        The seconds that a step waits for others.
    most : int
        The largest batch. If so many steps wait, they are computed at once.
    """

    def __init__(self, sessions: Sessions, window: float, most: int) -> None:
        self.sessions, self.window, self.most = sessions, window, most
        self.waiting: list[Waiting] = []
        self.timer: asyncio.TimerHandle | None = None

    async def step(self, row: int, x: np.ndarray) -> tuple[bytes, int]:
        """Return the output of a row's step, and the number of its steps with this one."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[bytes, int]] = loop.create_future()
        self.waiting.append((row, x, done))
        if len(self.waiting) >= self.most:
            self.run()
        elif self.timer is None:
            self.timer = loop.call_later(self.window, self.run)
        return await done

    def run(self) -> None:
        """Compute one step of each waiting row; a second step of a row waits for the next batch."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        batch: dict[int, Waiting] = {}
        later: list[Waiting] = []
        for one in self.waiting:
            if one[0] in batch or len(batch) == self.most:
                later.append(one)
            else:
                batch[one[0]] = one
        self.waiting = later
        if later:
            self.timer = asyncio.get_running_loop().call_later(0, self.run)
        rows = np.array([*batch], np.intp)
        x = np.stack([x for _, x, _ in batch.values()])
        try:
            y = self.sessions.stream.step(x, rows=rows)
        except Exception as error:  # no state has changed; each waiting request gets the error
            for _, _, done in batch.values():
                done.set_exception(error)
            return
        self.sessions.steps[rows] += 1
        for (row, _, done), output in zip(batch.values(), y, strict=True):
            if not done.cancelled():
                done.set_result((output.tobytes(), int(self.sessions.steps[row])))


def make_app(sessions: Sessions, file: Path, window: float, most: int) -> FastAPI:
    """Return the service; it begins with the sessions of the file, if the file exists."""
    batcher, saving = Batcher(sessions, window, most), asyncio.Lock()

    async def save() -> None:
        async with saving:
            await asyncio.to_thread(write, file, sessions.snapshot())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expect_replaceable(file)  # now, and not at the end, when the sessions would be lost
        if file.exists():
            sessions.restore(file)
        yield
        await save()

    app = FastAPI(title="fastgru sessions", lifespan=lifespan)

    @app.post("/sessions", status_code=201)
    async def begin() -> dict[str, Any]:
        return {"session": sessions.begin(), "steps": 0}

    @app.get("/sessions/{name}")
    async def look(name: str) -> dict[str, Any]:
        return {"session": name, "steps": int(sessions.steps[sessions.row(name)])}

    @app.delete("/sessions/{name}", status_code=204)
    async def end(name: str) -> None:
        sessions.row(name)
        while batcher.waiting:  # before another session gets the row
            batcher.run()
        sessions.end(name)

    @app.post("/sessions/{name}/step")
    async def step(name: str, request: Request) -> Response:
        sessions.row(name)
        body = await body_of(request, 4 * sessions.inputs)
        x = np.frombuffer(body, "<f4").astype(np.float32)
        # The session may have ended while the body came.
        y, steps = await batcher.step(sessions.row(name), x)
        return Response(y, media_type="application/octet-stream", headers={"steps": str(steps)})

    @app.post("/save", status_code=204)
    async def save_now() -> None:
        await save()

    return app


def served(path: str) -> Any:
    """Return the layer of a file, or raise ValueError or TypeError that says why it cannot be."""
    layer = fastgru.load(path)
    if layer.dtype_policy.name != "float32":
        raise ValueError(
            f"{path}: expected a layer of float32, as requests are float32, got "
            f"{layer.dtype_policy.name}; make it anew with dtype='float32' and set_weights"
        )
    return layer


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Serve streaming sessions of a GRU.")
    add = parser.add_argument
    add("model", help="of fastgru.save, float32; its layers give whole sequences or the last step")
    add("--sessions", type=Path, default=Path("sessions.npz"), help="where they are saved")
    add("--rows", type=int, default=1024, help="how many sessions there may be")
    add("--window", type=float, default=1.0, help="milliseconds that a step waits for others")
    add("--most", type=int, default=64, help="steps of a batch; 1: each by itself")
    add("--port", type=int, default=8000)
    add("--seconds", type=float, default=10.0, help="in which a request must be complete")
    add("--connections", type=int, default=1000, help="how many there may be at a time")
    options = parser.parse_args()
    try:
        sessions = Sessions(served(options.model), options.rows)
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    app = make_app(sessions, options.sessions, options.window / 1e3, options.most)
    print(
        f"{options.model}: {sessions.inputs} features in, at most {options.rows} sessions; "
        f"listening on http://127.0.0.1:{options.port}, Ctrl-C ends it",
        flush=True,
    )
    uvicorn.run(
        app,
        port=options.port,
        http=limited(options.seconds, options.connections),
        ws="none",
        log_level="error",  # not a line for each wrong request
        access_log=False,
    )


if __name__ == "__main__":
    main()
