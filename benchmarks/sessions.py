"""Load on examples/server.py: steps in batches beside steps one by one.

    pip install ".[server]"
    python benchmarks/sessions.py --seconds 3 --rounds 5

Two servers of one model on the loopback, one with --most 1, are asked in turn by the same number of
sessions, each of which waits for its answer and then sends the next step. The clients have a
process of their own. First each server's answers are compared with the layer's, bit for bit.
Target: twice the steps a second, and a 99th percentile that is not higher; status 1 if missed.
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
from records import text_table

import fastgru

SERVER = Path(__file__).parents[1] / "examples" / "server.py"
TARGET = 2.0
MODES = {"one by one": ["--most", "1"], "in batches": []}


class Session:
    """A session on a connection of its own, by bare HTTP: a client library would be the limit."""

    async def begin(self, port: int) -> None:
        """Connect, and begin."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        body = await self._request("POST /sessions", b"")
        self.name = body.split(b'"')[3].decode()

    async def step(self, x: bytes) -> bytes:
        """Send a step, and wait for its answer."""
        return await self._request(f"POST /sessions/{self.name}/step", x)

    async def end(self) -> None:
        """End the session and the connection."""
        await self._request(f"DELETE /sessions/{self.name}", b"")
        self.writer.close()

    async def _request(self, what: str, body: bytes) -> bytes:
        head = f"{what} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        status = int(lines[0].split()[1])
        sizes = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
        body = await self.reader.readexactly(sizes[0] if sizes else 0)
        if status >= 300:
            raise RuntimeError(f"{what}: status {status}: {body.decode()}")
        return body


async def load(port: int, x: np.ndarray, seconds: float) -> tuple[list[float], list[bytes]]:
    """Let a session for each row of x step for so long; return all times, and all first answers."""
    sessions = [Session() for _ in x]
    times: list[float] = []
    for session in sessions:
        await session.begin(port)
    first = [await session.step(row[0].tobytes()) for session, row in zip(sessions, x, strict=True)]
    end = time.perf_counter() + seconds

    async def work(session: Session, row: np.ndarray) -> None:
        step, now = 1, time.perf_counter()
        while now < end:
            start = now
            await session.step(row[step % len(row)].tobytes())
            now = time.perf_counter()
            times.append(now - start)
            step += 1

    await asyncio.gather(*(work(s, row) for s, row in zip(sessions, x, strict=True)))
    for session in sessions:
        await session.end()
    return times, first


def client(connection: Any, x: np.ndarray) -> None:
    """Be the clients' process: put load on the port that it is told, for as long as it is told."""
    while True:
        try:
            port, seconds = connection.recv()
        except EOFError:
            return
        connection.send(asyncio.run(load(port, x, seconds)))


def start(model: Path, folder: Path, mode: str, rows: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server; return it and its port once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, SERVER, model, "--port", port, "--rows", rows, *MODES[mode]]
    command += ["--sessions", folder / f"{mode}.npz"]
    server = subprocess.Popen([str(word) for word in command])
    for _ in range(600):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return server, port
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


def main() -> int:
    """Run from the command line; 1 if the target was missed, 2 if an answer was wrong."""
    parser = argparse.ArgumentParser(description="Put load on a server of streaming sessions.")
    add = parser.add_argument
    add("--clients", type=int, default=32, help="sessions that step at the same time")
    add("--layers", type=int, default=3)
    add("--units", type=int, default=1024)
    add("--inputs", type=int, default=256)
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=3.0, help="of each round and server")
    options = parser.parse_args()
    easy: dict[str, Any] = {"recurrent_initializer": "glorot_uniform", "return_sequences": True}
    layer = fastgru.Sequential([fastgru.GRU(options.units, **easy) for _ in range(options.layers)])
    layer.build((None, None, options.inputs))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.clients, 50, options.inputs)).astype(np.float32)
    expected = [y.tobytes() for y in layer(x[:, :1])[:, 0]]
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    spawn.Process(target=client, args=(there, x), daemon=True).start()
    there.close()
    servers = {}
    rounds: dict[str, list[tuple[float, float, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as name:
        fastgru.save(layer, Path(name) / "model.safetensors")
        try:
            for mode in MODES:
                servers[mode] = start(
                    Path(name) / "model.safetensors", Path(name), mode, 2 * options.clients
                )
            for number in range(options.rounds + 1):  # the first warms up
                for mode in MODES if number % 2 else reversed(MODES):
                    here.send((servers[mode][1], options.seconds if number else 0.5))
                    times, first = here.recv()
                    if first != expected:
                        print(f"{mode}: WRONG answers", file=sys.stderr)
                        return 2
                    if number:
                        p50, p99 = np.percentile(times, [50, 99])
                        rounds[mode].append((len(times) / options.seconds, p50, p99))
        finally:
            for server, _ in servers.values():
                server.kill()
                server.wait()
    rows = [["steps", "a second", "p50 ms", "p99 ms"]]
    for mode, figures in rounds.items():
        rate, p50, p99 = (statistics.median(column) for column in zip(*figures, strict=True))
        rows.append([mode, f"{rate:.0f}", f"{1e3 * p50:.1f}", f"{1e3 * p99:.1f}"])
    ratios = [(b[0] / a[0], b[2] / a[2]) for a, b in zip(*(rounds[m] for m in MODES), strict=True)]
    gain, tail = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(
        f"{options.clients} sessions, {options.layers} x {options.units} units of "
        f"{options.inputs} inputs; medians of {options.rounds} rounds\n{text_table(rows)}\n"
        f"in batches: {gain:.2f} times the steps a second, {tail:.2f} times the 99th percentile"
    )
    return 0 if gain >= TARGET and tail <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
