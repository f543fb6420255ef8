"""Checks a text file by its bytes, at the speed of reading, which is enough for most files."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from mgqe.ids.logs.paths import GZIP, ZSTD

CHUNK = 1 << 20  # bytes read at a time


def all_lines_alike(path: str, separator: str, quote: str, width: int) -> bool | None:
    """Whether every line of a file has ``width`` fields, and none a quote or a zero byte.

    separator: one ASCII character. quote: one, or empty.

    Returns:
        None if there is another line or the file is compressed; otherwise whether the file is UTF-8.
    """
    line = separator.encode() * (width - 1) + b"\n"
    others = bytes(set(range(256)) - set(b"\n\0" + (separator + quote).encode()))
    rest, last, text = b"", b"\n", _Utf8()
    with open(path, "rb") as file:
        if file.read(4).startswith((GZIP, ZSTD)):
            return None
        file.seek(0)
        while chunk := file.read(CHUNK):
            signs = rest + chunk.translate(None, others)
            whole = len(signs) // len(line)
            rest, last = signs[whole * len(line) :], chunk[-1:]
            if signs[: len(signs) - len(rest)] != line * whole or not line.startswith(rest):
                return None
            text.read(chunk)
    ends = rest == (b"" if last == b"\n" else line[:-1])  # the last line may lack its line feed
    return text.ends() if ends else None


@dataclass
class _Utf8:
    """Whether consecutive chunks are UTF-8; chunks of ASCII take almost no time."""

    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))
    good: bool = True

    def read(self, chunk: bytes, final: bool = False) -> None:
        if self.good and (final or self.decoder.getstate()[0] or not chunk.isascii()):
            try:
                self.decoder.decode(chunk, final)
            except UnicodeDecodeError:
                self.good = False

    def ends(self) -> bool:
        self.read(b"", final=True)
        return self.good
