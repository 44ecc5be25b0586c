"""How the numbers of a view read, above its lists: counts, rates, health and headings. The lists themselves stand in
``cells.py``; the terminal library is not needed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sandbox_redis.cli import text
from sandbox_redis.cli.show import STATE_STYLES
from sandbox_redis.states import State
from sandbox_redis.top.columns import Cell
from sandbox_redis.top.pulse import MINUTE
from sandbox_redis.top.view import View

_WORDY: Final = 100  # columns of a terminal that has room for words
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SECOND: Final = 10**9  # nanoseconds


def states_line(view: View, width: int) -> list[Cell]:
    """How many there are of each state, and where there is room for it the keys that show and hide them."""
    wordy = width >= _WORDY
    here = sum(view.states.values())
    number = f" {view.total:,}" if here == view.total else f" {here:,} of {view.total:,}"
    cells = [(number, "bold"), (" sandboxes" * wordy, "")]
    for key, state in enumerate(State, 1):
        shown = state in view.choice.states
        style = STATE_STYLES[state] if view.states[state] else "dim"
        words = f"{state} {view.states[state]:,}"
        cells += [("  ", ""), (f"{key} " * wordy, "dim"), (words, style if shown else "dim strike")]
    return cells


def rate_line(view: View, width: int) -> list[Cell]:
    """Changes per second, and how that was over the last minute."""
    rate = f"{view.rate:,.0f}" if view.rate >= 10 or not view.rate else f"{view.rate:.1f}"
    words = f"  {rate}/s "
    room = min(MINUTE, width - len(words) - 1)
    return [(words, "bold"), (sparks(view.minute, room).rjust(room), "cyan"), (" ", "")]


def sparks(values: Sequence[int], width: int) -> str:
    """Numbers as a line of bars, the newest last: one for each cell, or the highest of several."""
    if width <= 0 or not values:
        return ""
    each = -(-len(values) // width)
    first = len(values) % each  # the oldest bar may stand for fewer
    bounds = [*([0] if first else []), *range(first, len(values), each)]
    tops = [max(values[bound : following or None]) for bound, following in zip(bounds, [*bounds[1:], 0], strict=True)]
    highest = max(tops)
    return "".join(_SPARKS[-(-top * (len(_SPARKS) - 1) // highest) if highest else 0] for top in tops)


def health(view: View) -> Cell:
    """Whether what is seen is how it is."""
    if view.stale:
        return f" stale for {text.span(int(view.age * _SECOND))} ", "bold red reverse"
    return (" paused ", "bold yellow reverse") if view.choice.paused else (" live ", "bold green reverse")


def sandboxes_title(view: View) -> str:
    """What the list of sandboxes has, and in which order."""
    number = f"{view.fitting:,}" if len(view.rows) == view.fitting else f"{len(view.rows)} of {view.fitting:,}"
    order = view.choice.order.value + (", reversed" if view.choice.backwards else "")
    said = view.choice.described()
    return f"sandboxes: {number}{f' {said}' if said else ''}, {order}"


def nodes_title(view: View) -> str:
    """What the list of nodes has."""
    shown = len(view.nodes)
    return f"nodes: {view.nodes_total:,}" if shown == view.nodes_total else f"nodes: {shown} of {view.nodes_total:,}"
