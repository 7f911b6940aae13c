from collections.abc import Sequence

class CommandList:
    def __init__(self, launch: int, launch_cooperative: int, gemm: int) -> None: ...
    def add_kernel(
        self,
        function: int,
        blocks: int,
        threads: int,
        shared_bytes: int,
        cooperative: bool,
        arguments: Sequence[tuple[int, int | None]],
    ) -> None: ...
    def add_product(
        self,
        operations: tuple[int, int],
        sizes: tuple[int, int, int],
        a: tuple[int, int, int, int],
        b: tuple[int, int, int, int],
        c: tuple[int, int, int, int],
        one: int,
        zero: int,
        compute_type: int,
        algorithm: int,
    ) -> None: ...
    def issue(self, steps: int, stream: int, handle: int) -> tuple[int, int, int] | None: ...
