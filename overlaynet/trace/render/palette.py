"""The colours of drawings and pages, by what they mean, for paper and for dark screens.

Nothing is told by colour alone: whatever has one also has a word, a pattern or a shape. Each text has a
contrast of at least 4.5 to 1 with what it stands on (WCAG 2.2, 1.4.3), in both schemes; a test computes it.

A drawing carries the light colours in its elements' own attributes, which any stylesheet outranks: so the same
drawing is right alone, on paper, and inside a page that has a dark scheme.
"""

from __future__ import annotations

from typing import NamedTuple


class Colour(NamedTuple):
    """One meaning's colour in both schemes."""

    light: str
    dark: str


class Look(NamedTuple):
    """How something is drawn: names of colours; None: not at all."""

    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: str = ""


COLOURS = {
    "paper": Colour("#ffffff", "#14181d"),
    "host": Colour("#f4f6f8", "#1b2027"),
    "box": Colour("#ffffff", "#232a33"),
    "ink": Colour("#1b1f24", "#e8ecf1"),
    "quiet": Colour("#57606a", "#a5b0bd"),
    "edge": Colour("#afb8c1", "#4d5866"),
    "good": Colour("#116329", "#4ac26b"),
    "bad": Colour("#a40e26", "#ff8182"),
    "unsure": Colour("#7d4e00", "#e3b341"),
    "foretold": Colour("#0550ae", "#79c0ff"),
    "on-verdict": Colour("#ffffff", "#0d1117"),
    "mark": Colour("#0550ae", "#79c0ff"),
    "on-mark": Colour("#ffffff", "#0d1117"),
    "eth": Colour("#d8dee4", "#3d4752"),
    "ip": Colour("#b6e3ff", "#0c4a7d"),
    "udp": Colour("#ffe2b8", "#6b4a12"),
    "tcp": Colour("#b4f1b4", "#17552b"),
    "icmp": Colour("#f5d0fe", "#64286e"),
    "vxlan": Colour("#ffc9b5", "#7a3417"),
    "data": Colour("#ffffff", "#14181d"),
    "pipe": Colour("#fff1e5", "#3a2a1c"),
}
"""Every colour by its meaning. A header's layer has the name of `layers.Layer.kind`."""

LOOKS = {
    "paper": Look(fill="paper"),
    "host": Look(fill="host", stroke="edge"),
    "container": Look(fill="box", stroke="edge"),
    "card": Look(fill="box", stroke="edge"),
    "card-missing": Look(fill="paper", stroke="bad", width=1.5, dash="6 4"),
    "card-unexpected": Look(fill="box", stroke="bad", width=2.5),
    "card-unlooked": Look(fill="box", stroke="unsure", width=1.5, dash="2 3"),
    "underlay": Look(fill="paper", stroke="edge", dash="1 3"),
    "rail": Look(stroke="ink", width=2.5),
    "rail-missing": Look(stroke="bad", width=1.5, dash="3 5"),
    "rail-unlooked": Look(stroke="unsure", width=2.0, dash="2 4"),
    "arrow": Look(fill="ink"),
    "dot": Look(fill="ink"),
    "dot-missing": Look(fill="paper", stroke="bad", width=1.5),
    "dot-unexpected": Look(fill="bad"),
    "dot-unlooked": Look(fill="paper", stroke="unsure", width=1.5),
    "pipe": Look(fill="pipe", stroke="unsure", width=1.5),
    "layer": Look(stroke="quiet"),
    "layer-changed": Look(stroke="ink", width=2.0),
    "hatch": Look(stroke="ink", width=1.2),
    "cross": Look(fill="paper", stroke="bad", width=2.5),
    "badge": Look(fill="mark"),
    "line": Look(stroke="edge"),
    "good": Look(fill="good"),
    "bad": Look(fill="bad"),
    "unsure": Look(fill="unsure"),
    "foretold": Look(fill="foretold"),
    "bad-outline": Look(fill="paper", stroke="bad", width=1.5),
    "unsure-outline": Look(fill="paper", stroke="unsure", width=1.5),
}
"""How shapes are drawn, by name. `layer` and `layer-changed` are filled with the layer's own colour."""

TEXTS = (
    ("ink", "paper"), ("ink", "host"), ("ink", "box"), ("quiet", "paper"), ("quiet", "host"), ("quiet", "box"),
    ("bad", "paper"), ("bad", "box"), ("bad", "host"), ("unsure", "paper"), ("unsure", "box"),
    ("good", "paper"),
    ("foretold", "paper"), ("mark", "paper"), ("ink", "pipe"), ("quiet", "pipe"), ("on-mark", "mark"),
    ("on-verdict", "good"), ("on-verdict", "bad"), ("on-verdict", "unsure"), ("on-verdict", "foretold"),
    *(("ink", layer) for layer in ("eth", "ip", "udp", "tcp", "icmp", "vxlan", "data")),
)  # fmt: skip
"""Which text stands on which ground."""


def layer_colour(kind: str) -> str:
    """The name of a layer's colour; what is not known looks like payload."""
    return {"arp": "icmp"}.get(kind, kind if kind in COLOURS else "data")


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
