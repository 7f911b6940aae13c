from fastgru._native._weights import PackedWeights

NAME: str
CORE: str
THREADS: str

class BLASWeights(PackedWeights): ...

def use_panels(wanted: bool) -> bool: ...
