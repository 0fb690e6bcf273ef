"""What was learned: tables, figures and the report, from the small result files in git alone.

Submodules load when they are first asked for, so that what needs one of them (the plan of a study, an empty page for
its prose) imports none of the others.
"""

from importlib import import_module

MODULES = (
    "attention", "build", "compare", "costs", "diagram", "figures", "findings", "gains", "layers", "measured", "paired",
    "results", "schedules", "speed", "structure", "style", "tables", "text", "tokens", "topology",
)  # fmt: skip


def __getattr__(name: str):
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
