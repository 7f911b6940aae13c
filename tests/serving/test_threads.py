"""Thread counts, and that the calls of a process share them."""

import ctypes
import functools
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import subprocesses

import fastgru
from fastgru import threads
from fastgru.backends import cpu as cpu_backend

pytestmark = pytest.mark.alone


def default_in_a_new_process(code="", **environment):
    env = {k: v for k, v in subprocesses.environment().items() if k != "OMP_NUM_THREADS"}
    code = f"{code}\nfrom fastgru import threads\nprint(threads.get_num_threads())"
    return int(subprocesses.run_python(code, env, **environment))


@pytest.fixture(autouse=True)
def process_setting_is_restored(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_process", 0)
        yield
    for follower in threads._followers:
        follower(threads.get_num_threads())


def test_default_is_bounded_by_omp_num_threads():
    plain = default_in_a_new_process()
    assert default_in_a_new_process(OMP_NUM_THREADS="1") == 1
    assert default_in_a_new_process(OMP_NUM_THREADS=" 1,4 ") == 1
    assert default_in_a_new_process(OMP_NUM_THREADS="100000") == plain
    for ignored in ("", "0", "-3", "many"):
        assert default_in_a_new_process(OMP_NUM_THREADS=ignored) == plain


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_default_is_bounded_by_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    assert default_in_a_new_process(code) == 1
    assert 1 <= default_in_a_new_process() <= len(os.sched_getaffinity(0))


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        # The parent's quota counts too.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            2,
        ),
        # The host's path, not visible in the container.
        ({"proc/self/cgroup": "0::/docker/x\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "350000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    ],
    ids=str,
)
def test_cgroup_quota(tmp_path, files, expected):
    write(tmp_path, files)
    assert threads._cgroup_limit(tmp_path) == expected


def test_a_quota_of_one_processor_is_one_thread(tmp_path, monkeypatch):
    """In a container of one CPU on a large machine."""
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"})
    limit = threads._cgroup_limit
    monkeypatch.setattr(threads, "_cgroup_limit", lambda root: limit(tmp_path))
    monkeypatch.setattr(threads, "_affinity", lambda: 64)
    monkeypatch.setattr(threads, "_default", None)
    assert (threads.processors(), threads.get_num_threads()) == (1, 1)
    layer = fastgru.GRU(256)
    details = str(layer.explain(np.zeros((64, 50, 30), "float32")))
    if cpu_backend.build_info().get("kernel") == "fused":
        assert "1 thread (no more may be used)" in details


def test_set_and_get():
    default = threads.get_num_threads()
    threads.set_num_threads(7)
    assert threads.get_num_threads() == 7
    assert default >= 1


def test_blocks_nest_and_go_before_the_process_setting():
    threads.set_num_threads(7)
    with threads.num_threads(3):
        assert threads.get_num_threads() == 3
        with threads.num_threads(2):
            assert threads.get_num_threads() == 2
        assert threads.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="inside"), threads.num_threads(5):
            raise RuntimeError("inside")
        assert threads.get_num_threads() == 3
    assert threads.get_num_threads() == 7


def test_a_block_is_this_threads_alone():
    threads.set_num_threads(7)
    with ThreadPoolExecutor(1) as pool, threads.num_threads(3):
        assert pool.submit(threads.get_num_threads).result() == 7


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "num_threads: expected an integer >= 1, got 0"),
        (-2, ValueError, "got -2"),
        (1.0, TypeError, r"got 1\.0"),
        (True, TypeError, "got True"),
        ("2", TypeError, "got '2'"),
        (None, TypeError, "got None"),
    ],
)
def test_errors_change_nothing(value, error, message):
    threads.set_num_threads(4)
    with pytest.raises(error, match=message):
        threads.set_num_threads(value)
    with pytest.raises(error, match=message), threads.num_threads(value):
        pass
    assert threads.get_num_threads() == 4


# -- leases ----------------------------------------------------------------------------------------


@pytest.fixture
def leases():
    if cpu_backend._load() is None:
        pytest.skip("the extension is not built")
    from fastgru._native import _threads

    assert _threads.threads_in_use() == _threads.add_brief(0) == 0
    yield _threads
    assert _threads.threads_in_use() == _threads.add_brief(0) == 0


def test_callers_share_the_limit(leases):
    threads.set_num_threads(4)
    first = leases.lease_threads(3)
    second = leases.lease_threads(3)
    third = leases.lease_threads(3)
    assert (first, second, third) == (3, 1, 1), "a caller itself is never refused"
    leases.give_back_threads(first)
    fourth = leases.lease_threads(3)
    assert fourth == 2
    for granted in (second, third, fourth):
        leases.give_back_threads(granted)
    # A call that names a larger number itself may have it.
    assert leases.lease_threads(6) == 6
    leases.give_back_threads(6)


@pytest.fixture
def assert_same(leases):
    """Compare what one and several threads computed: the same bits from the fused kernel alone."""
    if cpu_backend.build_info()["kernel"] == "fused":
        return np.testing.assert_array_equal
    return functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["rows split", "panels split"])
def test_concurrent_calls_stay_within_the_limit(leases, assert_same, shared):
    """Each call wants four threads; beside the callers' own there are three in all."""
    from fastgru._native import _partition

    limit, callers = 4, 6
    threads.set_num_threads(limit)
    layer = fastgru.GRU(150, return_sequences=True)
    x = np.random.default_rng(0).standard_normal((12, 40, 20)).astype("float32")
    alone, tape = layer.forward(x, num_threads=1)
    dx = layer.backward(tape, np.ones_like(alone)).inputs
    running = []

    def call(_):
        assert_same(layer(x), alone)
        y, tape = layer.forward(x)
        assert_same(layer.backward(tape, np.ones_like(y)).inputs, dx)
        with pytest.raises(ValueError, match="expected three axes"):
            layer(x[0])

    try:
        _partition.force(4, shared)
        with ThreadPoolExecutor(callers) as pool:
            calls = [pool.submit(call, i) for i in range(60)]
            while not all(c.done() for c in calls):
                running.append(leases.threads_in_use())
                time.sleep(1e-4)
            for c in calls:
                c.result()
    finally:
        _partition.force(0, False)
    assert max(running) <= limit + callers - 1


IDLE = """
    import os, time
    import numpy as np
    import fastgru

    layer, x = fastgru.GRU(64), np.zeros((32, 50, 32), np.float32)
    before = dict(os.environ)
    fastgru.set_num_threads(2)
    layer(x)
    assert dict(os.environ) == before
    spent = []
    for _ in range(5):
        for _ in range(5):
            layer(x)
        start = time.process_time()
        time.sleep(0.05)
        spent.append(time.process_time() - start)
    print(sorted(spent)[2])
"""


def test_threads_sleep_soon_after_a_call(leases):
    if not cpu_backend._load()._kernels.OPENMP or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one thread: built without OpenMP, or one processor")
    long = "1000000"  # what the user has set is left alone: gcc's runtime spins for tens of ms
    ours, users = (
        float(subprocesses.run_python(IDLE, **variables))
        for variables in ({}, {"GOMP_SPINCOUNT": long, "KMP_BLOCKTIME": "50"})
    )
    assert ours < users / 4


def test_all_threads_taken(leases, assert_same):
    layer = fastgru.GRU(150)
    x = np.random.default_rng(0).standard_normal((12, 40, 20)).astype("float32")
    free = layer(x)
    granted = leases.lease_threads(threads.get_num_threads())
    try:
        assert_same(layer(x), free)
        if assert_same is np.testing.assert_array_equal:  # the other kernel's explain names a limit
            assert "1 thread" in str(layer.explain(x))
    finally:
        leases.give_back_threads(granted)


OVERSUBSCRIBED = """
    import numpy as np
    import fastgru
    from fastgru._native import _partition, _threads

    fastgru.set_num_threads(2)
    layer, x = fastgru.GRU(256), np.zeros((1, {steps}, 32), np.float32)
    layer(x[:, :1])
    _threads.set_processors(2)
    assert _partition.costs()["region"] == 0
    callers = [_threads.lease_threads(2)]
    if {crowded}:
        callers.append(_threads.lease_threads(1))
    for granted in callers:
        _threads.give_back_threads(granted)
    layer(x)
    print(_partition.costs()["region"] > 0)
"""


@pytest.mark.parametrize(
    ("steps", "crowded", "considered"), [(50, False, True), (50, True, False), (20000, True, True)]
)
def test_short_calls_among_many_are_not_made_by_teams(leases, steps, crowded, considered):
    """What two threads would take is measured by the first call that may be theirs."""
    if not cpu_backend._load()._kernels.OPENMP or cpu_backend.build_info()["kernel"] != "fused":
        pytest.skip("no teams of the fused kernel: built without OpenMP or without vectors")
    code = OVERSUBSCRIBED.format(steps=steps, crowded=crowded)
    assert subprocesses.run_python(code).strip() == str(considered)


TURNS = """
    import os, resource, threading
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
    import numpy as np
    import fastgru
    from fastgru._native import _threads

    x = np.random.default_rng(0).standard_normal(({shape})).astype(np.float32)
    layer = fastgru.GRU({units}, return_sequences=True)
    layer(x[:, :1])
    together = threading.Barrier(2)
    counts = []

    def work():
        if {backward}:
            y, tape = layer.forward(x)
            together.wait()
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            layer.backward(tape, y)
        else:
            together.wait()
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            y = layer(x)
        counts.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw - before)

    def switches():
        counts.clear()
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    by_themselves = switches()
    _threads.add_brief(1)
    print(switches(), by_themselves)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not bound here")
@pytest.mark.parametrize(
    ("shape", "units", "backward", "kernel"),
    [
        ("64, 3000, 24", 64, False, "fused"),
        ("64, 10000, 3", 4, False, "fused"),
        ("64, 1500, 24", 64, True, "fused"),
        ("64, 1500, 24", 64, False, "blas"),
    ],
    ids=["forward", "few units", "backward", "BLAS"],
)
def test_long_calls_take_turns(leases, shape, units, backward, kernel):
    """Beside a brief call two on one processor change places far more often than by themselves."""
    if kernel == "fused" and cpu_backend.build_info()["kernel"] != "fused":
        pytest.skip("this compiler made no fused loop")
    code = TURNS.format(shape=shape, units=units, backward=backward)
    turns, slices = map(int, subprocesses.run_python(code, FASTGRU_KERNEL=kernel).split())
    assert turns > 1.5 * slices, (turns, slices)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_child_of_fork_has_nothing_leased(leases):
    code = """
        import os
        from fastgru._native import _threads
        _threads.lease_threads(2)
        child = os.fork()
        if child == 0:
            os._exit(_threads.threads_in_use())
        print(os.waitpid(child, 0)[1])
    """
    assert subprocesses.run_python(code).strip() == "0"


def test_inside_a_region_of_the_callers_own(tmp_path):
    """Rank and team of a caller's OpenMP region are not ours: no row may be left out."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build a caller with OpenMP")
    source, library = tmp_path / "caller.c", tmp_path / "caller.so"
    source.write_text(
        "#include <omp.h>\n"
        "void each_thread(void (*call)(int)) {\n"
        "#pragma omp parallel num_threads(3)\n"
        "    call(omp_get_thread_num());\n"
        "}\n"
    )
    command = [compiler, "-fopenmp", "-shared", "-fPIC", "-o", str(library), str(source)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the C compiler (cc) has no OpenMP")
    layer = fastgru.GRU(16, return_sequences=True)
    x = np.random.default_rng(0).normal(size=(9, 20, 8)).astype("float32")
    expected, tape = layer.forward(x)
    gradient = layer.backward(tape, np.ones_like(expected)).weights[0]
    results = {}

    def call(rank):
        y, tape = layer.forward(x)
        results[rank] = layer(x), y, layer.backward(tape, np.ones_like(y)).weights[0]

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(call)
    each_thread = ctypes.CDLL(str(library)).each_thread
    each_thread.argtypes = [type(callback)]
    each_thread(callback)
    assert len(results) >= 1
    for y, saved, weights in results.values():
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(saved, expected)
        np.testing.assert_array_equal(weights, gradient)
