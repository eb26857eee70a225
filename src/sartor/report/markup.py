"""HTML from data: everything is escaped unless it is already :class:`Html`, so that no name in a result can become markup."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Html(str):
    """Text that is markup already. Build it with :func:`tag`, :func:`table` or :func:`join` from strings of unknown origin."""


def escape(value: object) -> Html:
    """`value` as HTML text: escaped unless it is :class:`Html`."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """The parts, each escaped, one after the other."""
    return Html(separator.join(escape(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. ``class_`` and ``for_`` drop their underscore, others become hyphens; True gives a bare attribute, None none."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"')
    opening = f"<{name}{''.join(written)}>"
    return Html(opening) if name in ("meta", "link", "img", "input", "br") else Html(f"{opening}{join(children)}</{name}>")


def table(
    caption: str,
    headers: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Iterable[int] = (),
    attributes: Sequence[dict[str, object]] = (),
) -> Html:
    """A table that scrolls sideways on a narrow screen; the first cell of a row is its header, `numeric` columns are aligned right."""
    right = set(numeric)

    def align(column: int) -> str | None:
        return "number" if column in right else None

    head = tag("tr", *(tag("th", h, scope="col", class_=align(i)) for i, h in enumerate(headers)))
    body = []
    for n, row in enumerate(rows):
        cells = [tag("th" if i == 0 else "td", c, scope="row" if i == 0 else None, class_=align(i)) for i, c in enumerate(row)]
        body.append(tag("tr", *cells, **(attributes[n] if n < len(attributes) else {})))
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def section(identifier: str, title: str, *children: object) -> Html:
    """A titled section that the navigation can jump to."""
    return tag("section", tag("h2", title, id=f"{identifier}-title"), *children, id=identifier, aria_labelledby=f"{identifier}-title")


def finite(value: Any) -> Any:
    """`value` as strict JSON can hold it: NaN and infinities become null, tuples lists, keys strings, anything foreign its ``str``."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def json_block(identifier: str, value: Any) -> Html:
    """`value` as a JSON data block. ``<``, ``>`` and ``&`` are escaped, so that no string inside can end the block or open another."""
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Html(f'<script type="application/json" id="{identifier}">{safe}</script>')
