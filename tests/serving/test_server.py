"""examples/server.py: sessions, batches, and what is left of both after a crash."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import subprocesses
from server_support import SERVER, Server

import fastgru

RNG = np.random.default_rng(0)
INPUTS, UNITS, STEPS, CLIENTS = 5, 11, 12, 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    options = {"bias_initializer": "random_normal", "return_sequences": True}
    layer = fastgru.Sequential([fastgru.GRU(9, **options), fastgru.GRU(UNITS, **options)])
    layer.build((None, None, INPUTS))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    fastgru.save(layer, path)
    return path, layer


@pytest.fixture
def x():
    return RNG.standard_normal((CLIENTS, STEPS, INPUTS)).astype("float32")


@pytest.mark.parametrize("options", [("--window", "20"), ("--most", "3"), ("--most", "1")])
def test_every_session_gets_what_its_sequence_gives_alone(model, tmp_path, x, options):
    path, layer = model
    expected = layer(x)
    with Server(path, tmp_path / "s.npz", *options) as server:

        def talk(i):
            session = server.begin()
            for t in range(STEPS):
                y, steps = server.step(session, x[i, t])
                np.testing.assert_array_equal(y, expected[i, t])
                assert steps == t + 1
            return session

        with ThreadPoolExecutor(CLIENTS) as pool:
            sessions = [*pool.map(talk, range(CLIENTS))]
        assert len(set(sessions)) == CLIENTS


def test_two_steps_of_one_session_at_once_are_taken_one_after_the_other(model, tmp_path, x):
    path, layer = model
    same = np.repeat(x[:1, :1], 4, axis=1)
    expected = {y.tobytes() for y in layer(same)[0]}
    with Server(path, tmp_path / "s.npz", "--window", "100") as server:
        session = server.begin()
        with ThreadPoolExecutor(4) as pool:
            replies = [*pool.map(lambda _: server.step(session, same[0, 0]), range(4))]
        assert {y.tobytes() for y, _ in replies} == expected
        assert sorted(steps for _, steps in replies) == [1, 2, 3, 4]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on this system")
def test_a_killed_server_continues_each_session_from_where_it_was_saved(model, tmp_path, x):
    path, layer = model
    expected = layer(x)
    file = tmp_path / "s.npz"
    with Server(path, file) as server:
        sessions = [server.begin() for _ in range(CLIENTS)]
        for i, session in enumerate(sessions):
            for t in range(2 + i):  # each another number of steps
                server.step(session, x[i, t])
        assert server.client.post("/save").status_code == 204
        for i, session in enumerate(sessions):
            server.step(session, x[i, 2 + i])  # will be lost
        lost = server.begin()
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with Server(path, file) as server:
        assert server.client.get(f"/sessions/{lost}").status_code == 404
        for i, session in enumerate(sessions):
            assert server.steps(session) == 2 + i
            for t in range(2 + i, STEPS):
                np.testing.assert_array_equal(server.step(session, x[i, t])[0], expected[i, t])


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM on this system")
def test_a_server_that_is_stopped_saves_all_sessions(model, tmp_path, x):
    path, layer = model
    expected = layer(x)
    file = tmp_path / "s.npz"
    with Server(path, file) as server:
        session = server.begin()
        for t in range(4):
            server.step(session, x[0, t])
        server.stop(signal.SIGTERM)
    with Server(path, file) as server:
        np.testing.assert_array_equal(server.step(session, x[0, 4])[0], expected[0, 4])


def test_sessions_of_another_model_are_refused(model, tmp_path):
    path, layer = model
    file = tmp_path / "s.npz"
    with Server(path, file) as server:
        server.begin()
        server.client.post("/save")
    layer = fastgru.load(path)
    layer.set_weights([w * 2 for w in layer.get_weights()])
    fastgru.save(layer, tmp_path / "other.safetensors")
    with (
        pytest.raises(AssertionError, match="other weights"),
        Server(tmp_path / "other.safetensors", file),
    ):
        pass


def test_what_is_wrong_is_said(model, tmp_path, x):
    with Server(model[0], tmp_path / "s.npz", "--rows", "2") as server:
        session = server.begin()
        step = f"/sessions/{session}/step"
        reply = server.client.post(step, content=b"123")
        assert reply.status_code == 422
        assert "expected 5 float32, 20 bytes, got 3" in reply.text
        assert server.steps(session) == 0
        other = server.begin()
        assert server.client.post("/sessions").status_code == 503
        first = server.step(session, x[0, 0])[0]
        assert server.client.delete(f"/sessions/{session}").status_code == 204
        assert server.client.post(step, content=x[0, 0].tobytes()).status_code == 404
        again = server.begin()
        np.testing.assert_array_equal(server.step(again, x[0, 0])[0], first)
        assert server.steps(other) == 0


def test_it_says_where_it_listens_and_what_a_file_lacks(model, tmp_path):
    path, _ = model
    with Server(path, tmp_path / "s.npz", stdout=subprocess.PIPE) as server:
        line = server.process.stdout.readline()
        assert line == (
            f"{path}: {INPUTS} features in, at most 1024 sessions; listening on "
            f"http://127.0.0.1:{server.port}, Ctrl-C ends it\n"
        )
        server.process.stdout.close()
    wide = fastgru.GRU(3, dtype="float64", input_dim=2)
    fastgru.save(wide, tmp_path / "wide.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no model")
    wrong = {
        "wide.safetensors": "expected a layer of float32, as requests are float32, got float64",
        "other.safetensors": "other.safetensors: ",
        "none.safetensors": "none.safetensors",
    }
    for name, message in wrong.items():
        done = subprocess.run(
            [sys.executable, "-P", SERVER, tmp_path / name],
            env=subprocesses.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
