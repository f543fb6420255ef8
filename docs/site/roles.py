"""References of docstrings, such as :func:`mgqe.plan`, become code, with a link where the page describes that name."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Rewrite what mkdocstrings leaves of ``:role:`name```, which is Markdown to it."""

    def to_link(match: re.Match[str]) -> str:
        name = match[1].removeprefix("mgqe.")
        code = f"<code>{match[1]}</code>"
        return f'<a href="#mgqe.{name}">{code}</a>' if f'id="mgqe.{name}"' in html else code

    return re.sub(r":(?:attr|class|func|meth|mod):<code>([\w.]+)</code>", to_link, html)
