def force(threads: int, shared: bool) -> None: ...
def costs() -> dict[str, float]: ...
def plan(
    itemsize: int,
    lanes: int,
    batch: int,
    steps: int,
    inputs: int,
    units: int,
    products: int,
    meetings: int,
    threads: int,
) -> tuple[int, bool, float, float, float]: ...
