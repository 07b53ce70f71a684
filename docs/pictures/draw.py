"""Draws the pictures of the concept pages: python docs/pictures/draw.py. Standard library only.

They stand on a light sheet of their own, so that they do on light and dark pages.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY, INK = "#3b7dc4", "#d9691a", "#23894d", "#6b7680", "#1d2730"


class Picture:
    """Shapes on a sheet, in pixels from its upper left corner."""

    def __init__(self, width: int, height: int, what: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(what, quote=True)}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="14">'
        )
        self.parts = [f'<rect width="{width}" height="{height}" rx="8" fill="#fdfdfc"/>']

    def box(self, x: float, y: float, w: float, h: float, text: str, color: str, *, soft: str = "") -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{color}" fill-opacity="0.13" '
            f'stroke="{color}" stroke-width="1.5"/>'
        )
        lines = text.split("\n")
        top = y + h / 2 + 5 - 9 * (len(lines) - 1) - (8 if soft else 0)
        for i, line in enumerate(lines):
            self.text(x + w / 2, top + 18 * i, line, middle=True)
        if soft:
            self.text(x + w / 2, top + 18 * len(lines) - 1, soft, middle=True, size=11, color=GREY)

    def text(
        self, x: float, y: float, text: str, *, middle: bool = False, size: int = 14, color: str = INK, bold: bool = False
    ) -> None:
        anchor = ' text-anchor="middle"' if middle else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}"{anchor}{weight}>{escape(text)}</text>')

    def arrow(self, points: list[tuple[float, float]], color: str = GREY, *, dashed: bool = False) -> None:
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>')
        tip = [(x1, y1), (x1 - 9 * ux + 4.5 * uy, y1 - 9 * uy - 4.5 * ux), (x1 - 9 * ux - 4.5 * uy, y1 - 9 * uy + 4.5 * ux)]
        self.parts.append(f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in tip)} Z" fill="{color}"/>')

    def bar(self, x: float, y: float, w: float, h: float, color: str, text: str = "") -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="{h}" rx="3" fill="{color}"/>')
        if text:
            self.parts.append(
                f'<text x="{x + w / 2:.1f}" y="{y + h / 2 + 4}" font-size="11" fill="#fff" text-anchor="middle">{text}</text>'
            )

    def save(self, name: str) -> None:
        (HERE / name).write_text("\n".join([self.head, *self.parts, "</svg>"]) + "\n", encoding="utf-8")


def hybrid() -> None:
    """Two kinds of weights, two ways to train them."""
    p = Picture(760, 330, "Workers share the dense network by all-reduce; rows lie on servers and are updated when a push comes")
    p.text(20, 24, "The dense network: small, and every sample touches all of it. All-reduce: one step for all", bold=True, size=13)
    for i in range(3):
        p.box(60 + 230 * i, 44, 180, 56, f"worker {i}", BLUE, soft="forward, backward")
        if i:
            p.arrow([(60 + 230 * i - 50, 66), (60 + 230 * i - 4, 66)], BLUE)
            p.arrow([(60 + 230 * i - 4, 82), (60 + 230 * i - 46, 82)], BLUE)
    for i in range(3):
        x = 60 + 230 * i
        p.arrow([(x + 60, 232), (x + 60, 104)], GREEN)
        p.arrow([(x + 120, 104), (x + 120, 232)], ORANGE, dashed=True)
    p.text(126, 172, "rows", size=12, color=GREEN)
    p.text(190, 164, "gradients, at most", size=12, color=ORANGE)
    p.text(190, 180, "k steps late", size=12, color=ORANGE)
    for i in range(3):
        p.box(60 + 230 * i, 236, 180, 50, f"server {i}", GREEN, soft="some partitions of every table")
    p.text(20, 316, "The tables: up to terabytes, and a sample touches a few dozen rows. Asynchronous, with a bound", bold=True, size=13)
    p.save("hybrid.svg")


def batch() -> None:
    """The path of one batch."""
    p = Picture(760, 300, "Read, dedup, pull, pool, compute; then unpool, push, acknowledge")
    top = [("read", "files to a batch"), ("dedup", "unique ids"), ("pull", "their rows"), ("pool", "[B, D] a feature"), ("compute", "loss, gradients")]
    for i, (name, soft) in enumerate(top):
        color = BLUE if name == "compute" else GREY if name == "read" else GREEN
        p.box(14 + 150 * i, 50, 122, 60, name, color, soft=soft)
        if i:
            p.arrow([(14 + 150 * i - 26, 80), (14 + 150 * i - 3, 80)])
    for i, (name, soft) in enumerate([("push", "named, once"), ("unpool", "one gradient an id")]):
        p.box(14 + 150 * (2 + i), 190, 122, 60, name, ORANGE, soft=soft)
    p.arrow([(675, 112), (675, 220), (590, 220)], ORANGE)
    p.arrow([(462, 220), (440, 220)], ORANGE)
    p.arrow([(375, 188), (375, 114)], ORANGE)
    p.text(384, 168, "applied where", size=12, color=ORANGE)
    p.text(384, 183, "the rows are", size=12, color=ORANGE)
    p.arrow([(312, 220), (140, 220)], GREY)
    p.box(14, 190, 122, 60, "ledger", GREY, soft="sent = applied + …")
    p.arrow([(225, 112), (225, 150), (520, 150), (520, 188)], GREY, dashed=True)
    p.text(232, 128, "the ticket:", size=12, color=GREY)
    p.text(232, 143, "where each id stood", size=12, color=GREY)
    p.text(14, 28, "reader threads", size=12, color=GREY)
    p.text(164, 28, "engine thread, with the store's threads", size=12, color=GREEN)
    p.text(614, 28, "main thread", size=12, color=BLUE)
    p.text(14, 284, "While the main thread computes on one batch, the engine looks up the next and pushes the gradients of the last.", size=12)
    p.save("batch.svg")


def staleness() -> None:
    """What waits for what at staleness 0 and 2."""
    p = Picture(760, 330, "At staleness 0 lookups and compute take turns; at staleness 2 they overlap")

    def lane(y: float, k: int, unit: float = 46.0) -> None:
        look, comp, push = 0.7, 1.0, 0.6
        engine_free = main_free = 0.0
        computed: list[float] = []
        pushed = 0
        n = 6
        ready: list[float] = []
        t = 0
        while t < n or pushed < n:
            if t < n and pushed >= t - k:
                start = engine_free
                engine_free = start + look
                p.bar(110 + unit * start, y, unit * look - 2, 24, GREEN, f"L{t}")
                ready.append(engine_free)
                begin = max(main_free, engine_free)
                p.bar(110 + unit * begin, y + 34, unit * comp - 2, 24, BLUE, f"{t}")
                main_free = begin + comp
                computed.append(main_free)
                t += 1
            else:
                start = max(engine_free, computed[pushed])
                engine_free = start + push
                p.bar(110 + unit * start, y, unit * push - 2, 24, ORANGE, f"P{pushed}")
                pushed += 1
        end = 110 + unit * engine_free
        p.parts.append(f'<line x1="{end:.1f}" x2="{end:.1f}" y1="{y - 6}" y2="{y + 66}" stroke="{GREY}" stroke-dasharray="3 3"/>')

    for y, k, what in ((60, 0, "staleness 0: each lookup sees every push before it"), (205, 2, "staleness 2: a lookup may miss the last two pushes")):
        p.text(20, y - 16, what, bold=True, size=13)
        p.text(20, y + 16, "engine", size=12)
        p.text(20, y + 50, "network", size=12)
        lane(y, k)
    p.bar(20, 296, 22, 16, GREEN, "L")
    p.text(48, 309, "lookup", size=12)
    p.bar(120, 296, 22, 16, BLUE)
    p.text(148, 309, "forward and backward", size=12)
    p.bar(310, 296, 22, 16, ORANGE, "P")
    p.text(338, 309, "push. The order is fixed by the schedule, not by who is fast.", size=12)
    p.save("staleness.svg")


if __name__ == "__main__":
    hybrid()
    batch()
    staleness()
