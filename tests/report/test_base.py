"""Common properties of all pages: colours that are readable, text for names, no network."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from afinar.report.rendering import count, percent, short_uri, shorten, template

STYLE = files("afinar.report").joinpath("base.html.j2").read_text()
TEMPLATES = [file.name for file in files("afinar.report").iterdir() if file.name.endswith(".j2")]

Colour = tuple[float, float, float]


def colours(scheme: str) -> dict[str, Colour]:
    """Return the variables of a scheme, "light" or "dark", as sRGB from 0 to 1."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    block = blocks[0] if scheme == "light" else blocks[1]
    found: dict[str, Colour] = {}
    for name, value in re.findall(r"--([\w-]+): ([^;]+);", block):
        if value.startswith("#"):
            numbers = [int(value[place : place + 2], 16) for place in (1, 3, 5)]
        else:
            numbers = [int(number) for number in value.split()]
        red, green, blue = (number / 255 for number in numbers)
        found[name] = (red, green, blue)
    return found


def luminance(colour: Colour) -> float:
    """Return the relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Colour, second: Colour) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2): 1 to 21."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def mix(top: Colour, share: float, below: Colour) -> Colour:
    """Return a colour over another one, at an opacity."""
    red, green, blue = (share * t + (1 - share) * b for t, b in zip(top, below, strict=True))
    return red, green, blue


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((1, 1, 1), (0x77 / 255,) * 3) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_ground(scheme: str) -> None:
    colour = colours(scheme)
    pairs = [
        (text, ground)
        for text in ("ink", "soft", "good", "bad", "accent")
        for ground in ("paper", "wash")
    ]
    pairs += [("on-accent", "accent"), ("ink", "best"), ("soft", "best"), ("soft", "frame")]
    for text, ground in pairs:
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    # Numbers of a confusion matrix, at every shade of its cells.
    for shade in ("right", "wrong"):
        for share in range(11):
            shaded = mix(colour[shade], share / 10, colour["paper"])
            assert contrast(colour["ink"], shaded) >= 4.5, (shade, share)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_of_charts_stand_out(scheme: str) -> None:
    """WCAG 2.2, 1.4.11: 3:1 for graphics."""
    colour = colours(scheme)
    for number in range(7):
        assert contrast(colour[f"c{number}"], colour["paper"]) >= 3, number


def test_both_schemes_define_the_same_colours() -> None:
    assert colours("light").keys() == colours("dark").keys()


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_use_no_colour_but_the_variables(name: str) -> None:
    """A fixed colour would be unreadable in one of the schemes."""
    text = files("afinar.report").joinpath(name).read_text()
    body = re.sub(r":root \{.*?\}", "", text, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b(?=[;\"])", body)


def test_page_without_a_variable_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        template("index.html.j2").render(title="x")


def test_long_names_lose_their_middle() -> None:
    assert shorten("short") == "short"
    long = "2024-box-17-" + "x" * 80 + "-0042.jpg"
    short = shorten(long, 32)
    assert len(short) == 32
    assert short.startswith("2024-box-17-")
    assert short.endswith("-0042.jpg")
    assert short_uri(f"s3://bucket/some/folder/{long}") == short
    assert short_uri("/pictures/rust/7.jpg") == "7.jpg"


def test_numbers_have_their_nouns() -> None:
    assert count(1, "picture") == "1 picture"
    assert count(1200, "picture") == "1,200 pictures"
    assert count(2, "class", "classes") == "2 classes"
    assert percent(0.125) == "12.5 %"
    assert percent(None) == ""
