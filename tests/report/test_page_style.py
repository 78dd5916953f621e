"""Contrast of the page's colours, in both themes, from its stylesheet."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from alignlab.report.style import COLOURS, CONTROLS, INK, LINE, MUTED, PAPER

CSS = (resources.files("alignlab.report") / "page.css").read_text(encoding="utf-8")
PAIRS = re.findall(r"(--[\w]+):light-dark\((#\w{6}),(#\w{6})\)", CSS)
THEMES = [{name: pair[i] for name, *pair in PAIRS} for i in (0, 1)]


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def mixed(top: str, share: float, below: str) -> str:
    both = [(int(top[i : i + 2], 16), int(below[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in both)


def test_the_formula():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's known example


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_text_is_readable(theme):
    for text in ("--ink", "--muted", "--accent"):
        for ground in ("--page", "--paper", "--soft"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    assert contrast(theme["--warn"], theme["--warnbg"]) >= 4.5
    assert contrast(theme["--warn"], theme["--paper"]) >= 4.5
    assert contrast(theme["--ink"], theme["--warnbg"]) >= 4.5
    assert contrast(theme["--ink"], theme["--mark"]) >= 4.5


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_numbers_in_the_table_of_wins_are_readable(theme):
    for side in ("--up", "--down"):
        strongest = mixed(theme[side], 0.5, theme["--page"])  # a rate of 0 or 1 is shaded by half
        assert contrast(theme["--ink"], strongest) >= 4.5, side


def test_figures_use_the_colours_of_the_light_theme():
    names = {"--ink": INK, "--muted": MUTED, "--line": LINE, "--paper": PAPER}
    assert {name: THEMES[0][name] for name in names} == names


def test_marks_can_be_told_from_the_page():
    """WCAG asks 3 : 1 of graphics; yellow and sky blue on white rely on their shapes and names."""
    for light, dark in (*COLOURS, *CONTROLS.values()):
        assert contrast(light, THEMES[0]["--page"]) >= 2, light
        assert contrast(dark, THEMES[1]["--page"]) >= 3, dark
