"""Before which blocks tokens leave: functions from how many blocks a model has to the numbers of some of them."""

from collections.abc import Callable, Sequence

Places = Callable[[int], Sequence[int]]


def later(depth: int) -> tuple[int, ...]:
    """All blocks but the first, as in ToMe (arXiv 2210.09461), but for its last.

    >>> later(4)
    (1, 2, 3)
    """
    return tuple(range(1, depth))


def quarters(depth: int) -> tuple[int, ...]:
    """After a quarter, a half and three quarters of the blocks, as in DynamicViT (arXiv 2106.02034).

    >>> quarters(12), quarters(6)
    ((3, 6, 9), (1, 3, 4))

    Raises ValueError for fewer than four blocks.
    """
    if depth < 4:
        raise ValueError(f"A model of {depth} blocks has no quarters after which tokens could leave; name blocks.")
    return depth // 4, depth // 2, 3 * depth // 4
