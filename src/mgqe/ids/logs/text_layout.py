"""The layout of text files: the separator of fields, the quote character, and whether there is a header."""

from __future__ import annotations

from dataclasses import dataclass

_NAMED = {"\\t": "\t", "tab": "\t", "space": " "}
NO_QUOTE = "turn quoting off with quote='' (--no-quote)"
NO_HEADER = "say header=False (--no-header), and name columns by their numbers from 1"


@dataclass(frozen=True)
class TextLayout:
    """The layout of text files; Parquet has none.

    separator: one character or several. A tab may be written as a backslash and a t.
    quote: the character around fields that hold separators; empty if quotes are text, as they always are with
        separators of several characters and in RecBole's files.
    header: whether the first line has the columns' names. None: it has, and a first line like data is an error.
    """

    separator: str = ","
    quote: str = '"'
    header: bool | None = None

    @classmethod
    def of(cls, separator: str = ",", quote: str | None = '"', header: bool | None = None) -> TextLayout:
        """The layout of these options; ValueError or TypeError for invalid ones."""
        for name, value in (("separator", separator), ("quote", quote or "")):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be text, got {value!r} ({type(value).__name__})")
        if header is not None and not isinstance(header, bool):
            raise TypeError(f"header must be True, False or None, got {header!r} ({type(header).__name__})")
        separator = _NAMED.get(separator, separator)
        if not separator or set(separator) & set("\r\n\0"):
            raise ValueError(f"separator must be one character or several without a line break, got {separator!r}")
        quote = quote or ""
        if len(quote) > 1 or quote in ("\r", "\n", "\0", separator):
            raise ValueError(f"quote must be one character other than the separator, or empty, got {quote!r}")
        return cls(separator, quote if len(separator) == 1 else "", header)
