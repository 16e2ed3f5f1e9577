class Layout:
    def __init__(
        self,
        *,
        cells: int,
        queries: int,
        keys: int,
        query_prefix: int,
        key_prefix: int,
        query: int,
        query_start: int,
        key: int,
        key_start: int,
        query_place: int,
        key_place: int,
        orders: int,
        query_rank: int,
        key_rank: int,
        shared_keys: bool,
    ) -> None: ...

def forward(
    layout: Layout, numbers: tuple[int, ...], scale: float, dropout: float, seed: int, threads: int
) -> None: ...
def backward(
    layout: Layout, numbers: tuple[int, ...], scale: float, dropout: float, seed: int, threads: int
) -> None: ...
def backward_partial_bytes(layout: Layout, numbers: tuple[int, ...]) -> int: ...
def isa() -> str: ...
def isas() -> tuple[str, ...]: ...
def choose_isa(name: str) -> None: ...
