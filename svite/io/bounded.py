"""Bounds on what a description may build, before it is built: a few bytes may describe more than a machine holds."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

CALLS_EACH = 20
_REGISTRATIONS = (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)


class _Calls(TorchFunctionMode):
    """Counts calls of torch's functions: some modules fill a table, number by number, and register nothing."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it takes longer to build than a model of this file's size would")
        return function(*arguments, **(named or {}))


@contextmanager
def parts_at_most(limit: int) -> Iterator[None]:
    """Inside, this thread can give its modules so many parameters, buffers and modules, and call torch so many times
    for each of these.

    Raises ValueError at the first one too many.
    """
    thread, parts = get_ident(), 0

    def count(*_: object) -> None:
        nonlocal parts
        if get_ident() == thread:
            parts += 1
            if parts > limit:
                raise ValueError(f"it has more than {limit} modules and tensors, which this file can't be all of")

    with ExitStack() as hooks:
        hooks.enter_context(_Calls(limit * CALLS_EACH))
        for register in _REGISTRATIONS:
            hooks.callback(register(count).remove)
        yield


def refuse_larger(value: Any, limit: int, name: str) -> None:
    """ValueError for whole numbers beyond the limit anywhere in plain values."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        for inner in value:
            refuse_larger(inner, limit, name)
    elif isinstance(value, int) and abs(value) > limit:
        raise ValueError(f"{name} has a number that is larger than all {limit} elements of the file")
