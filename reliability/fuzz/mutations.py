"""Mutations, which damage the files of an artefact in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from reliability.fuzz.safetensors_bytes import join, split

Files = dict[str, bytes]
Mutation = Callable[[Random, Files], None]

FIFO, FOLDER = b"\0fifo", b"\0folder"  # contents that stand for what is no regular file


class NotApplicable(Exception):
    """The artefact has nothing that the mutation can change."""


def _some_file(rng: Random, files: Files) -> str:
    names = sorted(name for name, content in files.items() if content)
    if not names:
        raise NotApplicable
    return rng.choice(names)


def one_bit(rng: Random, files: Files) -> None:
    """One bit of one file."""
    _flip(rng, files, 1)


def many_bits(rng: Random, files: Files) -> None:
    """2 to 64 bits of one file."""
    _flip(rng, files, rng.randint(2, 64))


def _flip(rng: Random, files: Files, number: int) -> None:
    name = _some_file(rng, files)
    content = bytearray(files[name])
    for _ in range(number):
        content[_position(rng, content)] ^= 1 << rng.randrange(8)
    files[name] = bytes(content)


def _position(rng: Random, content: bytes | bytearray) -> int:
    """A random position: with even chances in the header, if there is one, or anywhere."""
    end = min(len(content), 8 + int.from_bytes(content[:8], "little"))
    return rng.randrange(end) if rng.random() < 0.5 else rng.randrange(len(content))


def zeroed(rng: Random, files: Files) -> None:
    """A range of bytes becomes zeros, as if a block was never written."""
    _overwrite(rng, files, lambda n: bytes(n))


def scrambled(rng: Random, files: Files) -> None:
    """A range of bytes becomes random."""
    _overwrite(rng, files, rng.randbytes)


def _overwrite(rng: Random, files: Files, filling: Callable[[int], bytes]) -> None:
    name = _some_file(rng, files)
    content = files[name]
    start = _position(rng, content)
    run = min(len(content) - start, rng.choice((1, 2, 4, 8, 64, 512, 4096)))
    files[name] = content[:start] + filling(run) + content[start + run :]


def exchanged(rng: Random, files: Files) -> None:
    """Two ranges of bytes of equal length are exchanged, in one file or between two."""
    one, two = _some_file(rng, files), _some_file(rng, files)
    a, b = _position(rng, files[one]), _position(rng, files[two])
    if one == two:
        a, b = sorted((a, b))
        run = min(rng.choice((1, 8, 64)), b - a, len(files[one]) - b)
        c = files[one]
        files[one] = c[:a] + c[b : b + run] + c[a + run : b] + c[a : a + run] + c[b + run :]
    else:
        run = min(rng.choice((1, 8, 64)), len(files[one]) - a, len(files[two]) - b)
        left, right = files[one][a : a + run], files[two][b : b + run]
        files[one] = files[one][:a] + right + files[one][a + run :]
        files[two] = files[two][:b] + left + files[two][b + run :]


def cut_short(rng: Random, files: Files) -> None:
    """A file ends early: anywhere, or at or beside a bound of a tensor or of the header."""
    name = _some_file(rng, files)
    content = files[name]
    positions = [0, 1, 7, 8, 9, len(content) - 1, rng.randrange(len(content)), *_bounds(content)]
    position = rng.choice(positions) + rng.choice((0, 0, -1, 1))
    files[name] = content[: min(max(position, 0), len(content) - 1)]


def _bounds(content: bytes) -> list[int]:
    parts = split(content)
    if parts is None:
        return []
    start = len(content) - len(parts[1])
    return [start, *(start + offset for entry in _entries(parts[0]) for offset in entry["data_offsets"])]


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


def lengthened(rng: Random, files: Files) -> None:
    """A file is followed by zeros, random bytes, a line feed or itself."""
    name = _some_file(rng, files)
    more = rng.choice((bytes(rng.randint(1, 4096)), rng.randbytes(rng.randint(1, 64)), files[name], b"\n"))
    files[name] += more


def length_of_header(rng: Random, files: Files) -> None:
    """The first eight bytes, the length of the header, change."""
    name = _some_file(rng, files)
    size = int.from_bytes(files[name][:8], "little")
    wrong = rng.choice((0, 1, size - 1, size + 1, size + 64, 2 * size, 2**31, 2**32 + size, 2**63, 2**64 - 1))
    files[name] = (wrong % 2**64).to_bytes(8, "little") + files[name][8:]


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63, 2**64, 10**40, 0.5, -0.0,
    1e308, float("nan"), float("inf"), "", "0", "1", "é\u0000\ud800", "compact", "../table.safetensors", "x" * 70_000,
    [], {}, [[]], {"a": 1}, [None], [0], [1, 2], [2**64], [-1], [True], ["x"],
)  # fmt: skip


def _edit(rng: Random, value: Any) -> Any:
    """One entry of nested lists and objects, at any depth, is replaced, removed or added."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        changed = value.copy()
        keys = sorted(changed) if isinstance(changed, dict) else range(len(changed))
        key = rng.choice(keys)
        action = rng.random()
        if action < 0.7:
            changed[key] = _edit(rng, changed[key])
        elif action < 0.8:
            del changed[key]
        elif isinstance(changed, dict):
            changed[rng.choice(("extra", key + "x", "__metadata__", ""))] = changed[key]
        else:
            changed.insert(rng.randrange(len(changed) + 1), rng.choice((changed[key], *ODD)))
        return changed
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8, 64, -value - 1, 2**32))
    return _nested(800) if rng.random() < 0.02 else rng.choice(ODD)


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def metadata(rng: Random, files: Files) -> None:
    """An entry of a header's metadata, or of the configuration in it, changes."""
    name, header, payload = _some_header(rng, files)
    about = header["__metadata__"]
    if "config" in about and rng.random() < 0.7:
        about["config"] = json.dumps(_edit(rng, json.loads(about["config"])))
    else:
        header["__metadata__"] = _edit(rng, about)
    files[name] = join(header, payload)


def tensor_description(rng: Random, files: Files) -> None:
    """A tensor's name, type, shape or offsets in a header change."""
    name, header, payload = _some_header(rng, files)
    tensors = sorted(set(header) - {"__metadata__"})
    if not tensors:
        raise NotApplicable
    tensor = rng.choice(tensors)
    action = rng.random()
    if action < 0.2:
        header[rng.choice(tensors)], header[tensor] = header[tensor], header[rng.choice(tensors)]
    elif action < 0.3:
        header[tensor + rng.choice(("x", ".0", "0"))] = header.pop(tensor)
    elif action < 0.5:
        header[tensor]["dtype"] = rng.choice(("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "X", 0))
    else:
        header[tensor] = _edit(rng, header[tensor])
    files[name] = join(header, payload)


def _some_header(rng: Random, files: Files) -> tuple[str, dict[str, Any], bytes]:
    parsed = {name: split(content) for name, content in files.items()}
    name = rng.choice(sorted(name for name, parts in parsed.items() if parts))
    parts = parsed[name]
    assert parts is not None
    parts[0].setdefault("__metadata__", {"format": "pt"})
    return name, *parts


def json_file(rng: Random, files: Files) -> None:
    """An entry of a manifest or of a configuration file changes."""
    names = sorted(name for name in files if name.endswith(".json"))
    if not names:
        raise NotApplicable
    name = rng.choice(names)
    files[name] = json.dumps(_edit(rng, json.loads(files[name]))).encode()


def missing(rng: Random, files: Files) -> None:
    """A file is missing."""
    del files[_some_file(rng, files)]


def swapped(rng: Random, files: Files) -> None:
    """Two files exchange their names."""
    one, two = _two(rng, files)
    files[one], files[two] = files[two], files[one]


def doubled(rng: Random, files: Files) -> None:
    """A file has the content of another one."""
    one, two = _two(rng, files)
    files[one] = files[two]


def _two(rng: Random, files: Files) -> tuple[str, str]:
    if len(files) < 2:
        raise NotApplicable
    one, two = rng.sample(sorted(files), 2)
    return one, two


def renamed(rng: Random, files: Files) -> None:
    """A file has another name: one character differs, or a suffix is added."""
    name = _some_file(rng, files)
    if rng.random() < 0.2:
        new = name + rng.choice(("0", ".bak", ".tmp", "~"))
    else:
        position = rng.randrange(len(name))
        new = name[:position] + rng.choice("0123456789abcdef") + name[position + 1 :]
    if new in files:
        raise NotApplicable
    files[new] = files.pop(name)


def copied(rng: Random, files: Files) -> None:
    """There is a copy of a file, whose name differs in one digit."""
    name = _some_file(rng, files)
    digits = [position for position, letter in enumerate(name) if letter.isdigit()]
    if not digits:
        raise NotApplicable
    position = rng.choice(digits)
    new = name[:position] + str(rng.randrange(10)) + name[position + 1 :]
    if new in files:
        raise NotApplicable
    files[new] = files[name]


def special(rng: Random, files: Files) -> None:
    """A FIFO or a folder is in a file's place."""
    files[_some_file(rng, files)] = rng.choice((FIFO, FOLDER))


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        one_bit, many_bits, zeroed, scrambled, exchanged, cut_short, lengthened, length_of_header, metadata,
        tensor_description, json_file, missing, swapped, doubled, renamed, copied, special,
    )
}  # fmt: skip


def mutate(rng: Random, files: Files) -> tuple[str, Files]:
    """The name of a mutation, and the files after it, which differ from ``files``."""
    while True:
        name = rng.choice(sorted(MUTATIONS))
        changed = dict(files)
        try:
            MUTATIONS[name](rng, changed)
        except NotApplicable:
            continue
        if changed != files:
            return name, changed
