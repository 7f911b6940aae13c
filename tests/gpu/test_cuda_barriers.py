"""Each barrier and fence of the persistent kernels is needed, and the emulation shows it.

Each is taken out of its kernel in turn: the numbers must become wrong, or the launch must
not come to an end, in at least one schedule. This prints which:

    PYTHONPATH=tests/support python tests/gpu/test_cuda_barriers.py
"""

import functools
import itertools
import re

import numpy as np
import pytest
from cuda_emulator import SCHEDULES, Emulator, Kernels, needs_compiler, shim
from device_support import assert_agrees, draw
from random_problems import make_spec, make_weights

from fastgru._cuda import source
from fastgru.backends.cuda import CudaBackend
from fastgru.errors import BackendError

pytestmark = needs_compiler

WAITS = re.compile(
    r"(__syncthreads\(\)|__threadfence\(\)|atomicAdd\(.*\)|while \(.*counted.*\)\s*"
    r"|grid_barrier\(arrived, .*\));"
)


def barriers():
    """Yield (kernel, number, function, statement, edit): edit takes the statement out of a text."""
    for kernel, program in source.RESIDENT.items():
        text = source.text(program)
        for number, match in enumerate(WAITS.finditer(text)):
            function = re.findall(r"^(?:KERNEL|.*void) (\w+)\(", text[: match.start()], re.M)[-1]
            if function in source.RESIDENT and function != kernel:
                continue  # another kernel's own
            statement = match[0].partition("(")[0]
            yield kernel, number, function, statement, functools.partial(delete, match.start())


def delete(place, text):
    """Take out the statement at a place of a text; texts without one there stay."""
    return text[:place] + WAITS.sub("(void)0;", text[place:], count=1)


def failures(kernel, edit):
    """Return {schedule: what is wrong} for a kernel in edited text."""
    wrong = {}
    for schedule in SCHEDULES:
        spec = make_spec(3, 11, reset_after=kernel.endswith("after"))
        rng = np.random.default_rng(12)
        weights = make_weights(rng, spec)
        problem = draw(rng, spec, "steps", True, "recurrent", (False, True, False))
        program = source.RESIDENT[kernel]
        edits = {program: edit}
        emulator = Emulator(schedule, blocks=3, shared_bytes=1300, edits=edits)
        try:
            assert_agrees(CudaBackend(emulator), problem, weights)
        except BackendError as error:
            if ": deadlock:" not in str(error):
                raise
            wrong[schedule] = "deadlock"
        except AssertionError:
            wrong[schedule] = "wrong numbers"
        assert kernel in emulator.launched
    return wrong


@pytest.mark.parametrize("kernel", source.RESIDENT)
def test_with_all_barriers(kernel):
    assert failures(kernel, str) == {}


def test_barriers_are_found():
    found = {(kernel, statement) for kernel, _, _, statement, _ in barriers()}
    kinds = ("__syncthreads", "__threadfence", "atomicAdd", "while ", "grid_barrier")
    assert found == set(itertools.product(source.RESIDENT, kinds))


@pytest.mark.parametrize(
    ("kernel", "edit"),
    [pytest.param(k, edit, id=f"{k}-{n}-{f}-{s}") for k, n, f, s, edit in barriers()],
)
def test_a_deleted_barrier_is_seen(kernel, edit):
    assert failures(kernel, edit), "this is not needed"


def test_a_launch_that_fails_otherwise_shows_nothing():
    shim("fail_at").value = 1
    with pytest.raises(BackendError, match="told to fail"):
        failures("steps_after", str)


# -- the emulation itself --------------------------------------------------------------------------


def run(body, threads=32, blocks=1, shared_bytes=0, schedule="forward"):
    """Run a kernel `k(float *out, unsigned *count)` of this body; return out, a float a thread."""
    out, count = np.zeros(threads * blocks, np.float32), np.zeros(1, np.uint32)
    text = f'extern "C" __global__ void k(float *out, unsigned *count) {{ {body} }}'
    engine = Kernels(text, schedule=schedule, blocks=blocks, shared_bytes=shared_bytes)
    engine.launch_resident("k", (), blocks, threads, shared_bytes, (out, count))
    return out


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_block_and_warp(schedule):
    i = "const unsigned i = threadIdx.x;"
    turn = f"{i} SHARED(float, s); s[i] = i; __syncthreads(); out[i] = s[blockDim.x - 1 - i];"
    np.testing.assert_array_equal(
        run(turn, 48, shared_bytes=192, schedule=schedule), np.arange(48)[::-1]
    )
    swap = f"{i} out[i] = __shfl_xor_sync(0xffffffffu, (float)i, 1);"
    swap += " out[i] += 100 * __shfl_xor_sync(0xffffffffu, (float)i, 2);"
    lanes = np.arange(32)
    np.testing.assert_array_equal(run(swap, schedule=schedule), (lanes ^ 1) + 100 * (lanes ^ 2))
    poison = "SHARED(float, s); out[threadIdx.x] = s[threadIdx.x];"
    assert np.isnan(run(poison, shared_bytes=128, schedule=schedule)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("told", "heard"), list(itertools.product([True, False], repeat=2)))
def test_blocks_see_each_other_after_fences(told, heard, schedule):
    """What a block writes: after its fence, and one of the block that reads."""
    body = f"""
        out[blockIdx.x] = 1;
        {"__threadfence();" * told}
        atomicAdd(count, 1);
        while (counted(count) < 2 * gridDim.x);
        {"__threadfence();" * heard}
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++)
            sum += out[b];
        out[gridDim.x + blockIdx.x] = sum;
    """
    out = run(body, 2, blocks=3, schedule=schedule)[3:]
    if told and heard:
        np.testing.assert_array_equal(out, 3)
    else:
        assert (out < 3).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_counter_of_the_grid_barrier_wraps_round(schedule):
    text = (
        source.text("back")
        + """
KERNEL meet(float *out, unsigned *arrived, long long round) {
    for (int i = 0; i < 2; i++) {
        out[i * gridDim.x + blockIdx.x] = 1;
        grid_barrier(arrived, (unsigned)(round + i + 1));
        for (unsigned b = 0; b < gridDim.x; b++)
            out[(2 + i * gridDim.x + blockIdx.x) * gridDim.x + b] = fresh(out + i * gridDim.x + b);
        grid_barrier(arrived + 1, (unsigned)(i + 1));
    }
}"""
    )
    spec = make_spec(1, 1)
    options = source.options(spec.dtype, spec.activation, spec.recurrent_activation)
    blocks = 7  # which meet in the middle of 2^32
    out = np.zeros(16 * blocks, np.float32)
    round_before = (1 << 32) // blocks - 1
    arrived = np.array([blocks * round_before, 0], np.uint32)
    engine = Kernels(text, schedule=schedule, blocks=blocks)
    engine.launch_resident("meet", options, blocks, 1, 0, (out, arrived, round_before))
    np.testing.assert_array_equal(out, 1)
    assert arrived[0] == blocks * (round_before + 2) - (1 << 32)


def test_a_deadlock_is_told():
    with pytest.raises(BackendError, match=r"block 0: 31 threads wait at __syncthreads; 1 threads"):
        run("if (threadIdx.x) __syncthreads();")
    with pytest.raises(BackendError, match=r"block 1: 32 threads wait for a counter"):
        run("if (blockIdx.x) while (!counted(count));", blocks=2)


if __name__ == "__main__":
    line = "{:13} {:13} {:14} {:14} {:14} {:14}".format
    print(line("kernel", "taken out of", "what", *SCHEDULES).rstrip())
    for kernel, _, function, statement, edit in barriers():
        wrong = failures(kernel, edit)
        seen = (wrong.get(schedule, "-") for schedule in SCHEDULES)
        print(line(kernel, function, statement.strip(), *seen).rstrip())
