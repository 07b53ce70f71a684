"""HTML and SVG as values: what is text is escaped, without anyone having to think of it.

>>> tag("p", "a < b", tag("b", "!"), class_="note")
'<p class="note">a &lt; b<b>!</b></p>'
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2730;--soft:#5f6b76;--line:#e3e6e9;--grid:#eceff1;
--c0:#2364aa;--c1:#d9691a;--c2:#23894d;--c3:#c2353a;--c4:#7b52ab;--c5:#128a9a;--c6:#8c6d46;--c7:#c43f7b;--good:#23894d;--bad:#c2353a}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--card:#1c2227;--ink:#e6eaed;--soft:#9aa5af;--line:#2d353c;--grid:#283037;
--c0:#6aaef0;--c1:#f0a05a;--c2:#5fc48a;--c3:#f07b7e;--c4:#b795e6;--c5:#55c8d6;--c6:#c7a678;--c7:#f089b5;--good:#5fc48a;--bad:#f07b7e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.5rem;line-height:1.25;margin:8px 0 2px;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:34px 0 10px}
h3{font-size:.95rem;margin:0 0 6px}
p{margin:4px 0 10px}
.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(135px,1fr));gap:10px;margin:18px 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:8px}
.tile{padding:10px 12px}
.tile b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.82rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px}
.card{padding:12px;min-width:0}
.say{border-left:4px solid var(--c1);padding:8px 12px;background:var(--card);border-radius:0 8px 8px 0}
.say p{margin:2px 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.88rem}
th,td{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
.long td{overflow-wrap:anywhere;min-width:90px}
.narrow table{width:auto}
th{color:var(--soft);font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap}
td.wait{color:var(--soft)}
td.bar{width:28%;min-width:80px}
.bar i{display:block;height:10px;margin-top:6px;border-radius:3px;background:var(--c0)}
.bar i.w{background:var(--soft);opacity:.45}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.good{color:var(--good)}.bad{color:var(--bad)}
details{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 12px;margin:8px 0}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font:.82rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace;margin:8px 0}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.82rem;color:var(--soft);margin-top:4px}
footer{margin-top:40px;color:var(--soft);font-size:.82rem}
@media(max-width:560px){.what{display:none}td.bar{min-width:60px}
main{padding:12px 10px 40px}td,th{padding-right:7px}.tile b{font-size:1.1rem}}
"""


class Markup(str):
    """Text that is markup already. Only this module makes it."""


def text(x: object) -> Markup:
    """What a person may read of anything, harmless in markup and in an attribute."""
    return x if isinstance(x, Markup) else Markup(html.escape(str(x), quote=True))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Children that are not markup are escaped, as are attributes; one that is None is left out. `class_`
    is `class`, `stroke_width` is `stroke-width`."""
    given = "".join(
        f' {k.rstrip("_").replace("_", "-") if k != "viewBox" else k}="{html.escape(str(v), quote=True)}"'
        for k, v in attributes.items()
        if v is not None
    )
    return Markup(f"<{name}{given}>{''.join(map(text, children))}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Parts one after another."""
    return Markup("".join(map(text, parts)))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Iterable[int] = (),
    what: int | None = None,
    style: str = "",
) -> Markup:
    """A table; the columns `numbers` are set flush right, and column `what` is left out on a phone. `style`: long, for
    cells that may be broken anywhere; narrow, for a table as wide as it needs to be."""
    right = set(numbers)
    side = ["n" if i in right else "what" if i == what else None for i in range(len(head))]
    top = tag("tr", *(tag("th", h, class_=s) for h, s in zip(head, side, strict=True)))
    body = (
        tag(
            "tr",
            *(
                c if str(c).startswith("<td") and isinstance(c, Markup) else tag("td", c, class_=s)
                for c, s in zip(row, side, strict=True)
            ),
        )
        for row in rows
    )
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_=f"wide {style}".strip())


def bar(share: float, *, wait: bool = False) -> Markup:
    """A table's cell with a bar of a share in [0, 1]."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return tag("td", tag("i", style=f"width:{percent:.1f}%", class_="w" if wait else None), class_="bar")


def details(summary: str, *children: object) -> Markup:
    """What opens at a click."""
    return tag("details", tag("summary", summary), *children)


def page(title: str, *children: object) -> str:
    """A whole document, which needs and loads nothing from elsewhere and runs nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *children)), lang="en") + "\n"
