"""benchmarks/gpu.py where there is no GPU: arguments, answers of the peers on the host, tables."""

import itertools
import json
import sys
from pathlib import Path

import cuda_emulator
import fake_cupy
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import gpu_cases
import gpu_peers
import gpu_probe
import gpu_report
from gpu_cases import BEFORE, DROPOUT, HOLES, PLAIN, TOLERANCES, make_case, reference
from problems import Shape
from worker import WorkerError

from fastgru import activations
from fastgru._cuda import engine as engines
from fastgru._cuda import source
from fastgru.backends import cuda_persistent

SMALL = Shape(3, 7, 5, 8)
OPTIONS = (PLAIN, HOLES, BEFORE, DROPOUT)


def test_the_reference_tells_options_apart():
    answers = [reference(make_case(SMALL, "float32", option)) for option in (PLAIN, HOLES, BEFORE)]
    assert all(answer.shape == (3, 7, 8) for answer in answers)
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one - other).max() > 10 * TOLERANCES["float16"]
    assert reference(make_case(SMALL, "float32", DROPOUT)) is None
    mask, y = make_case(SMALL, "float32", HOLES).mask, answers[1]
    for b, t in zip(*np.nonzero(~mask), strict=True):
        assert (y[b, t] == (y[b, t - 1] if t else 0)).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["FastGRU", "JaxScan", "Torch", "TorchCompiled"])
def test_peers_give_the_right_answer(name, option, dtype):
    """On the host; what they do on a device beyond that, only a device shows."""
    if name.startswith("Torch"):
        pytest.importorskip("torch", reason="torch is only in the extra `bench`")
    peer = getattr(gpu_peers, name)(1, device="cpu")
    if name == "FastGRU" and dtype == "float16":
        pytest.skip("float16 is for devices")
    if peer.serves is not None and option not in peer.serves:
        pytest.skip(f"{name} has no {option}")
    assert peer.versions()
    case = make_case(SMALL, dtype, option)
    prepared = peer.forward(case)
    first, second = (prepared.to_numpy(prepared.call()) for _ in range(2))
    assert first.shape == (3, 7, 8)
    right = reference(case)
    if right is None:
        assert np.isfinite(first).all()
        assert np.abs(first - second).max() > TOLERANCES[dtype]  # each call draws its own
    else:
        assert np.abs(first - right).max() <= TOLERANCES[dtype]
        np.testing.assert_array_equal(first, second)


def test_who_serves_what():
    assert gpu_peers.serves("gpu-torch", PLAIN)
    assert not gpu_peers.serves("gpu-torch", HOLES)
    assert gpu_peers.serves("gpu-fastgru@FASTGRU_BACKEND=cuda", BEFORE)
    for name in gpu.NAMES:
        assert name.partition("@")[0] in gpu_peers.PEERS


def test_arguments():
    usual, quick = (gpu.parse(["--out", "x", *more]) for more in ([], ["--quick"]))
    assert (usual.rounds, usual.block_ms, usual.seconds) == (5, 30.0, 440.0)
    assert quick.seconds < 120 < usual.seconds < 480
    assert usual.only == list(gpu.SECTIONS)
    assert gpu.parse(["--out", "x", "--only", "cudnn", "peers"]).only == ["peers", "cudnn"]
    for wrong in ([], ["--out", "x", "--rounds", "0"], ["--out", "x", "--only", "nothing"]):
        with pytest.raises(SystemExit):
            gpu.parse(wrong)


def test_what_is_measured():
    usual, quick = (list(gpu_cases.peer_cases(how)) for how in (False, True))
    assert len(usual) == 2 * 4 * 4
    assert set(quick) < set(usual)
    shapes = {(shape.B, shape.H) for shape, _ in usual}
    assert shapes == set(itertools.product((1, 8, 32, 128), (128, 256, 512, 1024)))
    assert {option for *_, option in gpu_cases.option_cases(True)} == {HOLES, BEFORE, DROPOUT}


class Worker:
    """What `gpu.Run` asks of a process."""

    def __init__(self, times, error=0.0, answers=None):
        self.times, self.error, self.answers = itertools.cycle(times), error, answers

    def prepare(self, task, case):
        assert task == "forward"
        if isinstance(self.error, str):
            raise WorkerError(self.error)
        return [reference(case).astype("float32") + np.float32(self.error)]

    def block(self, seconds, calls):
        time = next(self.times)
        if time is None:
            raise WorkerError("it died")
        return {"median_us": time}

    def do(self, name, *arguments):
        return self.answers(name, *arguments)


def run(**workers):
    made = gpu.Run(gpu.parse(["--out", "x", "--quick"]))
    made.workers = {name.replace("_", "-"): worker for name, worker in workers.items()}
    return made


def test_ratios_are_taken_within_a_round(capsys):
    ours, torch = Worker([10, 20, 40]), Worker([20, 60, 160])
    made = run(gpu_fastgru=ours, gpu_torch=torch)
    case = make_case(SMALL, "float32")
    entry = made.compare(case, reference(case), {"gpu-fastgru": case, "gpu-torch": case})
    assert entry["peers"]["gpu-torch"]["ratio"] == 3  # of 2, 3 and 4
    assert entry["peers"]["gpu-fastgru"]["median_us"] == 20
    assert not made.wrong


@pytest.mark.parametrize(
    ("worker", "said", "wrong"),
    [
        (Worker([1], error=1e-4), "WRONG: off by 1.0e-04, allowed 2.0e-05", True),
        (Worker([1], error=np.nan), "WRONG: off by nan", True),
        (Worker([1], error="no such thing"), "no such thing", False),
        (Worker([1, None]), "it died", False),
    ],
)
def test_who_is_wrong_is_not_timed(worker, said, wrong, capsys):
    made = run(gpu_fastgru=Worker([10]), gpu_torch=worker)
    case = make_case(SMALL, "float32")
    entry = made.compare(case, reference(case), {"gpu-fastgru": case, "gpu-torch": case})
    assert said in entry["peers"]["gpu-torch"]["failed"]
    assert said in capsys.readouterr().out
    assert "ratio" not in entry["peers"]["gpu-torch"]
    assert entry["peers"]["gpu-fastgru"]["median_us"] == 10
    assert made.wrong == wrong


def test_what_there_was_no_time_for_is_named():
    made = run(gpu_fastgru=Worker([10]))
    made.end = 0.0
    assert made.peers() == []
    assert len(made.results["skipped"]) == len(list(gpu_cases.peer_cases(True)))
    assert made.results["skipped"][0] == "b1t100i128h256 float32"


def test_cudnn_may_be_missing():
    made = run(gpu_probe=Worker([], answers=lambda name: {"cudnn_missing": "no file"}[name]))
    assert made.cudnn() == []
    assert made.results["skipped"] == ["cudnn (no file)"]


def probe_answers(name, *arguments):
    """What a probe could say; small layers are faster in one launch up to a batch of 32."""
    if name == "cudnn_missing":
        return None
    if name == "cudnn":
        math, algorithm, units, batch = arguments
        if algorithm == "small":
            return {"status": "CudnnError: NOT_SUPPORTED"}
        times = {"forward": 1.0 * batch, "rows_first": 2.0, "training": 3.0}
        return times | {"status": "ok", "repeats": math != "tf32"}
    if name == "paths":
        dtype, units, batch, steps = arguments
        assert steps == 100
        if dtype == "float16":
            raise WorkerError("no such dtype")
        resident = {"resident": batch / 8, "tile": min(batch, 32)} if units == 256 else {}
        return {"steps": 5.0} | resident
    if name == "barrier":
        return {"blocks": 132, "microseconds": 1.25}
    if name == "memory":
        sizes = {"after 10": 100.0, f"after {arguments[0]}": 100.5}
        return {"forward": sizes, "training": sizes}
    dtype, _, _ = arguments
    return {"forward": True, "training": dtype == "float32"}


@pytest.fixture
def results(capsys):
    """A whole run, with times that are made up."""
    names = {"gpu-fastgru": [10], "gpu-fastgru@FASTGRU_BACKEND=cuda": [20]}
    made = run(gpu_probe=Worker([], answers=probe_answers))
    made.workers |= {name: Worker(times) for name, times in names.items()}
    cases = [make_case(SMALL, dtype) for dtype in TOLERANCES]
    sections = made.results["sections"]
    sections["peers"] = [
        made.compare(case, reference(case), dict.fromkeys(names, case)) for case in cases
    ]
    for name in ("paths", "cudnn", "memory"):
        sections[name] = gpu.SECTIONS[name](made)
    made.results["peers"] = {
        "gpu-probe": {"versions": {"device": "NVIDIA Test", "cupy": "14"}},
        "gpu-jax": {"missing": "ImportError: no jax"},
    }
    made.results["skipped"] = ["cudnn tf32"]
    return json.loads(json.dumps(made.results))  # as it is read from the file


def test_tables(results):
    found = {title: rows for title, _, rows in gpu_report.tables(results)}
    peers = found["Forward, beside others"]
    assert peers[1] == ["b3t7i5h8 float32", "10 (1.00)", "20 (2.00)"]
    assert peers[-1] == ["geometric mean", "1.00", "2.00"]
    paths = found["Step by step or persistent"]
    assert paths[0] == ["dtype, units", "B=1", "B=8", "B=32", "B=64", "best up to B"]
    assert paths[1:] == [
        ["float32 256", "5.00 / 0.12", "5.00 / 1.00", "5.00 / 4.00", "5.00 / 8.00 (32)", "32"],
        ["float32 512", *(4 * ["5.00 / -"]), "never"],
    ]
    cudnn = {row[0]: row[1:] for row in found["cuDNN's algorithms"][1:]}
    assert cudnn["float32 standard 128"] == ["1.00 / 2.00 / 3.00", "32.00 / 2.00 / 3.00"]
    assert cudnn["tf32 static 1024"] == ["1.00 / 2.00 / 3.00 !", "32.00 / 2.00 / 3.00 !"]
    assert cudnn["float16 small 512"] == ["[1]", "[1]"]
    assert found["Memory of the device"][1] == ["forward", "100.0", "100.5"]
    assert found["Two runs"][1][1:] == ["same", "same"]
    assert found["Two runs"][-1][1:] == ["same", "DIFFERENT"]
    assert found["A grid barrier"][1] == ["132", "1.25"]


def test_files_and_text(results, tmp_path):
    gpu_report.save(results, tmp_path / "new")
    (table,) = (tmp_path / "new").glob("*-gpu.md")
    (data,) = (tmp_path / "new").glob("*-gpu.json")
    assert json.loads(data.read_text()) == results
    for text in (table.read_text(), gpu_report.text(results)):
        assert "fastgru on NVIDIA Test" in text
        assert "[1] CudnnError: NOT_SUPPORTED" in text
        assert "Not measured: gpu-jax (ImportError: no jax)." in text
        assert "Left out, or out of time: cudnn tf32." in text
        assert "gpu-probe: device NVIDIA Test, cupy 14." in text
    widths = {line.count("|") for line in table.read_text().splitlines() if "float32 256" in line}
    assert widths == {7}


def test_without_a_device(tmp_path, capsys):
    """It says so, with status 2, and still writes what it knows."""
    if gpu_has_device():
        pytest.skip("there is a device")
    assert gpu.main(["--out", str(tmp_path), "--quick", "--only", "memory"]) == 2
    assert "gpu-probe: " in capsys.readouterr().out
    (table,) = tmp_path.glob("*-gpu.md")
    assert "Not measured: gpu-probe (" in table.read_text()


def gpu_has_device():
    try:
        gpu_probe.Probe(1)
    except (ImportError, RuntimeError):
        return False
    return True


@cuda_emulator.needs_compiler
def test_the_kernel_of_barriers_comes_to_an_end():
    dtype = np.dtype("float32")
    options = source.options(dtype, activations.tanh, activations.sigmoid)
    engine = cuda_emulator.Kernels(source.text("forward") + gpu_probe.BARRIERS, blocks=3)
    arrived = np.zeros(1, np.uint32)
    engine.launch_resident("many_barriers", options, 3, 64, 0, (arrived, 5))
    assert arrived[0] == 3 * 5


# -- on the emulated device: what is asked of fastgru is there, and answers ------------------------


@pytest.fixture
def cupy(monkeypatch):
    how = {"blocks": 3, "shared_bytes": 1 << 16}
    fake_cupy.install(monkeypatch.setattr, monkeypatch.setitem, **how)
    module = sys.modules["cupy"]
    module.__name__, module.__version__ = "cupy", "emulated"
    module.cuda.runtime.memGetInfo = lambda: (2**30, 3 * 2**30)
    return module


class Probe(gpu_probe.Probe):
    """It has no events: each measured call takes 100 us."""

    def _microseconds(self, work):
        work()
        return 100.0


@cuda_emulator.needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("option", OPTIONS)
def test_our_peer_on_the_device(cupy, option, dtype):
    case = make_case(SMALL, dtype, option)
    prepared = gpu_peers.FastGRU(1).forward(case)
    y = prepared.to_numpy(prepared.call())
    assert type(y) is np.ndarray
    right = reference(case)
    if right is None:
        assert np.isfinite(y).all()
    else:
        assert np.abs(y - right).max() <= TOLERANCES[dtype]


@cuda_emulator.needs_compiler
def test_the_probe_of_paths(cupy):
    probe, kept = Probe(1), (cuda_persistent.MAX_ROWS, cuda_persistent.MIN_TILE)
    assert probe.paths("float32", 8, 2, 5) == {"steps": 20.0, "resident": 20.0, "tile": 2}
    # The emulated device has no room for 264 KB of weights in each of three blocks.
    assert probe.paths("float32", 256, 2, 5) == {"steps": 20.0}
    assert kept == (cuda_persistent.MAX_ROWS, cuda_persistent.MIN_TILE)


@cuda_emulator.needs_compiler
def test_the_probe_of_memory_and_bits(cupy):
    probe = Probe(1)
    same = {"after 10": 2048.0, "after 12": 2048.0}
    assert probe.memory(12) == {"forward": same, "training": same}
    assert probe.repeats("float32", 8, 2) == {"forward": True, "training": True}


@cuda_emulator.needs_compiler
@pytest.mark.parametrize("math", ["float32", "tf32", "float16"])
def test_the_probe_of_cudnn(cupy, monkeypatch, math):
    fake_cudnn = pytest.importorskip("fake_cudnn", reason="comes with the cuDNN backend")
    from fastgru._cuda import libcudnn
    from fastgru.backends import cudnn

    backend = cudnn.CudnnBackend(engines.current(), libcudnn.Cudnn(fake_cudnn.FakeCudnn()))
    monkeypatch.setattr(cudnn, "CudnnBackend", lambda: backend)
    monkeypatch.setattr(gpu_probe, "CUDNN_STEPS", 5)
    found = Probe(1).cudnn(math, "static", 8, 3)
    times = dict.fromkeys(("forward", "training", "rows_first"), 20.0)
    assert found == times | {"status": "ok", "repeats": True}
    assert "NOT_SUPPORTED" in Probe(1).cudnn(math, "small", 200, 3)["status"]
