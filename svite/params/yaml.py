"""YAML that somebody else wrote: plain values, and none that would overflow a stack or the memory."""

from collections.abc import Iterable
from typing import Any

DEEPEST, MOST = 50, 100_000  # lists in lists, and values with what stands for them elsewhere


def yaml_value(text: str | bytes, where: str, pure: bool = False) -> Any:
    """What a YAML text says, read by the C library or (`pure`) by rules of YAML 1.2 alone.

    Raises ValueError, in one sentence, for what is no YAML, is nested deeper than anybody would, or stands for more
    values than it has.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        _refuse_overgrown(YAML(typ="safe").parse(text))
        return YAML(typ="safe", pure=pure).load(text)  # builds plain values only, whatever a text's tags ask for
    except (YAMLError, ValueError, LookupError) as error:  # the last for a number or a truth value that is none
        place = getattr(error, "problem_mark", None)
        said = (getattr(error, "problem", None) or str(error)).splitlines()[0].partition(";")[0]
        line = f" in line {place.line + 1}" if place else ""
        raise ValueError(f"{where} is not valid YAML: {said[:200]}{line}.") from None


def _refuse_overgrown(events: Iterable[Any]) -> None:
    """Raise ValueError before lists in lists overflow a parser's stack, or names that stand for names the memory."""
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    sizes: dict[str | None, int] = {}  # of what has a name
    around: list[tuple[str | None, int]] = [(None, 0)]  # each list that is open: its name, and what is in it so far
    for event in events:
        if isinstance(event, CollectionStartEvent):
            sizes[event.anchor] = MOST  # whoever stands for what is around it has no end
            around.append((event.anchor, 1))
            if len(around) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            continue
        if isinstance(event, CollectionEndEvent):
            name, size = around.pop()
        elif isinstance(event, AliasEvent):
            name, size = None, sizes.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent):
            name, size = event.anchor, 1
        else:
            continue
        sizes[name] = size
        around[-1] = around[-1][0], around[-1][1] + size
        if around[-1][1] >= MOST:
            raise ValueError(f"it stands for more than {MOST} values, or for itself")
