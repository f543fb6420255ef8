"""Draws the floors in the table of docs/architecture.md: ``python docs/site/architecture.py`` writes the picture."""

from __future__ import annotations

import re
import textwrap
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "architecture.md"
PICTURE = DOCS / "pictures" / "architecture.svg"
WIDTH, GAP, LINE, PADDING = 640, 10, 17, 10

Floor = list[tuple[str, str]]  # package, what it is for


def floors(page: str) -> list[Floor]:
    """The rows of the page's table, one list per floor, from the ground up."""
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)`[^|]* \| ([^|]+) \|$", page, re.MULTILINE)
    numbers = sorted({int(number) for number, _, _ in rows})
    return [[(name, purpose) for number, name, purpose in rows if int(number) == floor] for floor in numbers]


def draw(building: list[Floor]) -> str:
    """An SVG with the highest floor at the top, one box per package."""
    boxes, y = [], GAP
    for floor in reversed(building):
        width = (WIDTH - GAP * (len(floor) + 1)) // len(floor)
        lines = [textwrap.wrap(purpose.replace("`", ""), (width - 2 * PADDING) // 7) for _, purpose in floor]
        height = 2 * PADDING + LINE * (1 + max(map(len, lines)))
        for number, ((name, _), words) in enumerate(zip(floor, lines)):
            x = GAP + number * (width + GAP)
            boxes.append(
                f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#e0f2f1" stroke="#00897b"/>'
            )
            left = f'<text x="{x + PADDING}"'
            boxes.append(f'{left} y="{y + PADDING + 12}" font-weight="bold" font-size="15">{escape(name)}</text>')
            for row, text in enumerate(words, 1):
                boxes.append(f'{left} y="{y + PADDING + 12 + LINE * row}">{escape(text)}</text>')
        y += height + GAP
    view, font = f'viewBox="0 0 {WIDTH} {y}"', 'font-family="sans-serif" font-size="13" fill="#263238"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} {font}>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(floors(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")
