"""The peers of gpu.py: each is created inside its own worker process, and computes on the device.

A timed call ends when the device is done. Inputs and weights are on the device beforehand, in each
peer's own type and layout; float32 is float32, nobody may round to TF32. See peers.py for what a
peer is. Another device than "cuda" is for the tests, which compare the peers' answers on the host.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_cases import BEFORE, DROPOUT, PLAIN, RATE, Case
from gpu_probe import Probe
from prepared import Prepared


class FastGRU:
    """Ours through its layer: CuPy arrays in and out."""

    serves = None  # every option

    def __init__(self, threads: int, device: str = "cuda") -> None:
        del threads
        sys.path.append(str(Path(__file__).resolve().parents[2]))  # an installed one comes first
        import fastgru

        self._fastgru, self._arrays = fastgru, np
        self._wait: Callable[[], None] = lambda: None
        if device == "cuda":
            import cupy

            cupy.cuda.runtime.getDevice()  # raises what is wrong with the device
            self._arrays = cupy
            self._wait = lambda: cupy.cuda.get_current_stream().synchronize()

    def versions(self) -> dict[str, str]:
        """Give the version, where it was imported from, and CuPy's."""
        return {
            "fastgru": self._fastgru.__version__,
            "path": str(Path(self._fastgru.__file__).parent),
            self._arrays.__name__: self._arrays.__version__,
        }

    def forward(self, case: Case) -> Prepared:
        """Build a layer from Keras' weights."""
        layer: Any = self._fastgru.GRU(
            case.shape.H,
            return_sequences=True,
            dtype=case.dtype,
            reset_after=case.option != BEFORE,
            recurrent_dropout=RATE if case.option == DROPOUT else 0.0,
            seed=1,
        )
        layer.build(case.x.shape)
        weights = (case.kernel, case.recurrent_kernel, case.bias)
        layer.set_weights([array.astype(case.dtype) for array in weights])
        x = self._arrays.asarray(case.x.astype(case.dtype))
        how = {} if case.mask is None else {"mask": self._arrays.asarray(case.mask)}
        training = case.option == DROPOUT

        def call() -> Any:
            y = layer(x, training=training, **how)
            self._wait()
            return y

        return Prepared(call, lambda y: np.asarray(y.get() if hasattr(y, "get") else y))


class Torch:
    """``torch.nn.GRU``, batch first, in inference mode: cuDNN."""

    serves = (PLAIN,)

    def __init__(self, threads: int, device: str = "cuda") -> None:
        del threads
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise ImportError(f"torch {torch.__version__} finds no CUDA device")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._torch, self._device = torch, device
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def versions(self) -> dict[str, str]:
        """Give the versions of torch, and of the CUDA and cuDNN that it brings."""
        torch = self._torch
        cudnn = str(torch.backends.cudnn.version())
        return {"torch": torch.__version__, "cuda": str(torch.version.cuda), "cudnn": cudnn}

    def forward(self, case: Case) -> Prepared:
        """Build the module, whose gates are r, z, n."""
        torch, H = self._torch, case.shape.H
        module = torch.nn.GRU(case.shape.I, H, batch_first=True)
        with torch.no_grad():
            weights = (case.kernel, case.recurrent_kernel, *case.bias)
            for parameter, array in zip(module.parameters(), weights, strict=True):
                z, r, n = np.split(array, 3, axis=-1)
                parameter.copy_(torch.from_numpy(np.concatenate([r, z, n], axis=-1).T))
        module = module.to(self._device, self._dtype(case)).eval()
        module.flatten_parameters()
        x = self._tensor(case, case.x)

        def call() -> Any:
            with torch.inference_mode():
                y = module(x)[0]
            self._wait()
            return y

        return Prepared(call, self._to_numpy)

    def _dtype(self, case: Case) -> Any:
        return getattr(self._torch, case.dtype)

    def _tensor(self, case: Case, array: Any) -> Any:
        return self._torch.from_numpy(array).to(self._device, self._dtype(case))

    @staticmethod
    def _to_numpy(y: Any) -> np.ndarray:
        result: np.ndarray = y.float().cpu().numpy()
        return result


class TorchCompiled(Torch):
    """The equations in torch, a step compiled by Inductor, all steps in one CUDA graph.

    Unrolled whole, Inductor takes minutes for a hundred steps; step by step from Python, the
    launches take longer than the work. On the host, where only the tests are, neither is used.
    """

    serves = None

    def forward(self, case: Case) -> Prepared:
        """Compile, warm up on another stream as torch asks, and capture."""
        torch, (T, H) = self._torch, (case.shape.T, case.shape.H)
        x, W, U = (self._tensor(case, a) for a in (case.x, case.kernel, case.recurrent_kernel))
        bias = self._tensor(case, case.bias.reshape(-1, 3 * H))
        mask = None if case.mask is None else self._torch.from_numpy(case.mask).to(self._device)
        after = case.option != BEFORE

        # `out` only with a mask: without, it would be h, and Inductor compiles that case anew.
        def step(p: Any, h: Any, out: Any, valid: Any, drop: Any) -> tuple[Any, Any]:
            ks = [h, h, h] if drop is None else [h * drop[g] for g in range(3)]
            if drop is None and after:
                q = h @ U + bias[1]
                q_z, q_r, q_h = q[:, :H], q[:, H : 2 * H], q[:, 2 * H :]
            else:
                q_z, q_r = ks[0] @ U[:, :H], ks[1] @ U[:, H : 2 * H]
                q_h = ks[2] @ U[:, 2 * H :] if after else None
                if after:
                    q_z, q_r = q_z + bias[1, :H], q_r + bias[1, H : 2 * H]
                    q_h = q_h + bias[1, 2 * H :]
            z, r = torch.sigmoid(p[:, :H] + q_z), torch.sigmoid(p[:, H : 2 * H] + q_r)
            inner = r * q_h if after else (r * ks[2]) @ U[:, 2 * H :]
            n = torch.tanh(p[:, 2 * H :] + inner)
            new = z * h + (1 - z) * n
            if valid is None:
                return new, None
            return torch.where(valid, new, h), torch.where(valid, new, out)

        compiled = torch.compile(step) if self._device == "cuda" else step

        def run() -> Any:
            p = x @ W + bias[0]
            h = torch.zeros(x.shape[0], H, dtype=x.dtype, device=x.device)
            out = None if mask is None else torch.zeros_like(h)
            drop = None
            if case.option == DROPOUT:
                drop = torch.rand(3, x.shape[0], H, device=x.device) >= RATE
                drop = drop.to(x.dtype) / (1 - RATE)
            outputs = []
            for t in range(T):
                valid = None if mask is None else mask[:, t, None]
                h, out = compiled(p[:, t], h, out, valid, drop)
                outputs.append(h if out is None else out)
            return torch.stack(outputs, 1)

        with torch.inference_mode():
            return Prepared(self._captured(run), self._to_numpy)

    def _captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        torch = self._torch
        if self._device != "cuda":
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run()

        def call() -> Any:
            graph.replay()
            torch.cuda.synchronize()
            return y

        return call


class JaxScan:
    """The equations in JAX: the input projection at once, then ``jax.lax.scan``; jitted."""

    serves = None

    def __init__(self, threads: int, device: str = "cuda") -> None:
        del threads
        import jax

        try:
            self._device = jax.devices(device)[0]
        except (RuntimeError, AssertionError) as error:
            raise ImportError(f"jax {jax.__version__} finds no device: {error}") from None
        jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
        self._jax = jax

    def versions(self) -> dict[str, str]:
        """Give JAX's version and device."""
        return {"jax": self._jax.__version__, "device": str(self._device)}

    def forward(self, case: Case) -> Prepared:
        """Jit; weights are arguments, as they are elsewhere."""
        jax, (B, H) = self._jax, (case.shape.B, case.shape.H)
        jnp, after = jax.numpy, case.option != BEFORE

        def function(x: Any, W: Any, U: Any, bias: Any, mask: Any, count: Any) -> Any:
            p = jnp.swapaxes(x @ W + bias[0], 0, 1)
            rows = jnp.zeros((B, H), x.dtype)
            drop = None
            if case.option == DROPOUT:
                key = jax.random.fold_in(jax.random.key(1), count)
                kept = jax.random.bernoulli(key, 1 - RATE, (3, B, H))
                drop = kept.astype(x.dtype) / jnp.asarray(1 - RATE, x.dtype)

            def step(carry: Any, inputs: Any) -> Any:
                (h, out), (p_t, valid) = carry, inputs
                ks = [h, h, h] if drop is None else [h * drop[g] for g in range(3)]
                if drop is None and after:
                    q_z, q_r, q_h = jnp.split(h @ U + bias[1], 3, axis=-1)
                else:
                    gates = range(3) if after else range(2)
                    q = [ks[g] @ U[:, g * H : (g + 1) * H] for g in gates]
                    if after:
                        q = [part + bias[1, g * H : (g + 1) * H] for g, part in enumerate(q)]
                    q_z, q_r, q_h = (*q, None)[:3]
                p_z, p_r, p_h = jnp.split(p_t, 3, axis=-1)
                z, r = jax.nn.sigmoid(p_z + q_z), jax.nn.sigmoid(p_r + q_r)
                n = jnp.tanh(p_h + (r * q_h if after else (r * ks[2]) @ U[:, 2 * H :]))
                new = z * h + (1 - z) * n
                if valid is not None:
                    new_out = jnp.where(valid, new, out)
                    return (jnp.where(valid, new, h), new_out), new_out
                return (new, new), new

            return jnp.swapaxes(jax.lax.scan(step, (rows, rows), (p, mask))[1], 0, 1)

        jitted = jax.jit(function)
        arrays = (case.x, case.kernel, case.recurrent_kernel, case.bias.reshape(-1, 3 * H))
        arguments = [jax.device_put(a.astype(case.dtype), self._device) for a in arrays]
        mask = None if case.mask is None else case.mask.T[:, :, np.newaxis]
        arguments += [jax.device_put(mask, self._device)]
        counter = iter(range(1 << 31))

        def call() -> Any:
            return jitted(*arguments, next(counter)).block_until_ready()

        return Prepared(call, lambda y: np.asarray(y, np.float32))


PEERS: dict[str, Callable[[int], Any]] = {
    "gpu-fastgru": FastGRU,
    "gpu-fastgru-plain": FastGRU,  # a second process, for the same call without an option
    "gpu-torch": Torch,
    "gpu-torch-compile": TorchCompiled,
    "gpu-jax": JaxScan,
    "gpu-probe": Probe,
}

# What a peer needs in its environment before its first import. JAX would take most of the memory.
ENVIRONMENT: dict[str, dict[str, str]] = {
    "gpu-jax": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PLATFORMS": "cuda"},
}


def serves(name: str, option: str) -> bool:
    """Say whether a peer has the option."""
    served = getattr(PEERS[name.partition("@")[0]], "serves", ())
    return served is None or option in served
