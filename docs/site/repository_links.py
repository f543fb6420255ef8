"""Links of the pages to files outside docs/ lead to the repository; one to a file that is not there fails the build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite ``](../path)`` of a page in docs/, and ``](../../path)`` of one in a folder of docs/."""
    up = r"\.\./" * (1 + page.file.src_uri.count("/"))

    def to_repository(match: re.Match[str]) -> str:
        path = match[1]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_path}: there is no {path} in the repository")
        return f"]({config['repo_url']}/blob/main/{path}"

    return re.sub(rf"\]\({up}([^)#]+)", to_repository, markdown)
