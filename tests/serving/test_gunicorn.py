"""gunicorn: the master loads and warms up the layer, its forked workers serve it on threads."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import subprocesses

import fastgru

pytest.importorskip("gunicorn", reason="needs gunicorn")
pytest.importorskip("safetensors", reason="needs safetensors")
pytestmark = pytest.mark.alone

APP = """
import os
import numpy as np
import fastgru

layer = fastgru.load("model.safetensors")
layer(np.ones((48, 20, 24), np.float32), num_threads=2)  # in the master: no worker has its threads

def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    y = layer(np.frombuffer(body, np.float32).reshape(-1, 20, 24))
    start_response("200 OK", [("worker", str(os.getpid())), ("master", str(os.getppid()))])
    return [y.tobytes()]
"""


@pytest.fixture(params=[1, 4], ids=["one thread", "threads"])
def server(request, tmp_path):
    layer = fastgru.GRU(96, bias_initializer="random_normal", return_sequences=True)
    layer.build((None, None, 24))
    fastgru.save(layer, tmp_path / "model.safetensors")
    (tmp_path / "app.py").write_text(APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers=3"]
    command += [f"--threads={request.param}", f"--bind={address}", "app:application"]
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(
            command,
            env=subprocesses.environment(tmp_path, OMP_NUM_THREADS="2"),
            cwd=tmp_path,
            stderr=log,
        ) as process,
    ):
        yield layer, f"http://{address}/", process, tmp_path / "log"
        process.terminate()


def ask(url, x, log, seconds=60):
    """Return the answer, and who gave it; a worker that ends takes its connections along."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, x.tobytes(), timeout=seconds) as reply:
                headers = reply.headers
                return reply.read(), int(headers["worker"]), int(headers["master"])
        except (urllib.error.URLError, ConnectionError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) or time.monotonic() > end:
                raise AssertionError(log.read_text()) from error
            time.sleep(0.05)


def test_workers_serve_what_the_master_has_loaded(server):
    layer, url, process, log = server
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((b, 20, 24)).astype("float32") for b in (1, 7, 48)] * 40
    expected = [layer(x).tobytes() for x in inputs]
    assert ask(url, inputs[0], log)[0] == expected[0]
    with ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(ask, url, x, log) for x in inputs]
        victim = replies[0].result()[1]
        os.kill(victim, signal.SIGKILL)
        replies = [reply.result() for reply in replies]
    assert [y for y, _, _ in replies] == expected
    assert {master for _, _, master in replies} == {process.pid}
    again = [ask(url, inputs[0], log) for _ in range(20)]
    assert {y for y, _, _ in again} == {expected[0]}
    workers = {worker for _, worker, _ in [*replies, *again]}
    assert process.pid not in workers
    assert victim not in {worker for _, worker, _ in again}
    assert len(workers) > 1
