"""Notebooks become pages: each is run while the site is built, and its text, code, outputs and pictures are Markdown.

They are stored without outputs. A cell that fails, fails the build.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi

SECONDS = 600  # that a cell, or the start of a kernel, may take


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page and its pictures beside each notebook; the notebook itself stays a file that readers can take."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = PurePosixPath(file.src_uri).with_suffix(".md")
        text, pictures = to_markdown(Path(str(file.abs_src_path)), page.stem)
        for name, content in {page.name: text, **pictures}.items():
            files.append(File.generated(config, str(page.with_name(name)), content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links of other pages to a notebook lead to its page."""
    return re.sub(r"\]\(gallery/(\w+)\.ipynb\)", r"](gallery/\1.md)", markdown)


def to_markdown(path: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """Run a notebook in a folder of its own; its page, and its pictures by file name."""
    notebook = nbformat.read(path, as_version=4)
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where mgqe is, for %%sh
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, coalesce_streams=True)
        client.resources = {"metadata": {"path": folder}}
        client.execute(env={**os.environ, "PATH": commands})
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name})
    text = strip_ansi(text).replace(".ipynb)", ".md)").replace("![png]", "![picture]")
    title, _, rest = text.lstrip().partition("\n")
    return f"{title}\n\n[Take this page as a notebook]({name}.ipynb)\n{rest}", resources["outputs"]
