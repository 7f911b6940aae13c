"""examples/server.py in a process of its own, and a client of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import subprocesses

for package in ("fastapi", "uvicorn", "safetensors"):
    pytest.importorskip(package, reason=f"needs {package}")
httpx = pytest.importorskip("httpx", reason="needs httpx")

SERVER = Path(__file__).parents[2] / "examples" / "server.py"


class Server:
    """A server in a process of its own, and a client of it."""

    def __init__(self, model, sessions, *options, stdout=subprocess.DEVNULL):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        port = str(self.port)
        command = [sys.executable, "-P", SERVER, model, "--sessions", sessions, "--port", port]
        self.process = subprocess.Popen(
            [*map(str, command), *options],
            env=subprocesses.environment(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def __enter__(self):
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            try:
                self.client.get("/sessions/none")
                return self
            except httpx.TransportError:
                time.sleep(0.05)
        self.client.close()
        self.stop(signal.SIGKILL)
        with self.process.stderr as said:
            raise AssertionError(said.read())

    def __exit__(self, *_):
        self.client.close()
        self.stop(signal.SIGKILL)
        self.process.stderr.close()

    def stop(self, number):
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(30)

    def begin(self):
        reply = self.client.post("/sessions")
        assert reply.status_code == 201
        return reply.json()["session"]

    def step(self, session, x):
        reply = self.client.post(f"/sessions/{session}/step", content=x.tobytes())
        assert reply.status_code == 200, reply.text
        return np.frombuffer(reply.content, np.float32), int(reply.headers["steps"])

    def steps(self, session):
        return self.client.get(f"/sessions/{session}").json()["steps"]
