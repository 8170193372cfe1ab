"""Random damage to inputs: to their bytes, their words, and the values of their JSON."""

import copy
import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Damage = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, "", " ", [], {}, [[]], [{}], {"": None}, 0, -1, 1, 1.5, -0.0, 1e308, 1e-320,
    2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, float("nan"), float("inf"), float("-inf"),
    "0", "1e999", "nan", "x" * 3000, "a.png", "../a.png", "/etc/passwd", "a\nb", "a\u2028b",
    "\x00", "\ud800", "\x1b[31m", "ü😀", [1, 2, 3], [1, 2, 3, 4], [5, 5, 1, 1], [[1, 2], [3, 4]],
    "<region1>", "<region0>", "<region99999999999999999999>", "<Region><L1><L2><L3><L4></Region>",
)  # fmt: skip
"""Values that replace those of JSON documents."""
ODD_WORDS = (
    b"", b"0", b"-1", b"1e999", b"nan", b"inf", b"-", b"--1", b"1_0", b"0x10", b"9" * 5000,
    b"null", b"true", b"[]", b"{}", b"[" * 3000, b'{"a":' * 3000, b'""', b'"', b"'", b"'''", b",",
    b";", b":", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"\xff\xfe", b"\\", b"\\u", b"\\ud800", b"<", b">", b"</", b"/>", b"&lt;", b"&x;", b"&#0;",
    b"<!DOCTYPE a>", b"<![CDATA[", b"<?xml?>", b"#", b"=", b"a = 1", b"[a]", b"[[a]]", b"|-",
    b"&a *a", b"!!x", b"%", b"<region1>", b"<region2>", b"<region", b"<region9999999999>",
    b"<L1>", b"/", b"//", b"..", b"~", b"~x/y", b"*", b"a" * 300, b"/box", b"/box 1,2,3,4",
    b"/boxes", b"/undo", b"/new", b"/image a.png", b"/save x", b"/save", b"/help",
    b"\xed\xa0\x80", b"\xe2\x80\xa8", "ü".encode(), "😀".encode(), b"sep=;\n",
)  # fmt: skip
"""Texts that replace or join words."""
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 24, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1)  # fmt: skip
"""Numbers that are written over the fields of binary headers."""
WORD = re.compile(rb"[A-Za-z0-9_.+-]+|[^A-Za-z0-9_.+-]")


def damaged(data: bytes, rng: random.Random, others: Sequence[bytes], limit: int) -> bytes:
    """Damage an input in one to four places.

    Args:
        data: The input.
        rng: Decides everything.
        others: Inputs to take pieces from.
        limit: Largest length of the result in bytes.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        archive = data.startswith(b"PK") and rng.random() < 0.7
        data = (in_archive if archive else rng.choice(DAMAGES))(data, rng, others)
    return data[:limit]


def in_json(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Replace, remove, repeat or rename one value of a JSON document, or of a line of JSON."""
    lines = data.split(b"\n")
    whole = rng.random() < 0.5 or len(lines) == 1
    place = rng.randrange(len(lines))
    head, text = data[:1], data[1:] if whole else lines[place]
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return in_words(data, rng, others)
    places = list(nodes(document, 0))
    if not places:
        return in_words(data, rng, others)
    parent, key = rng.choice(places)
    value = copy.deepcopy(rng.choice(ODD_VALUES))
    match rng.randrange(6):
        case 0 | 1 | 2:
            parent[key] = value
        case 3:
            del parent[key]
        case 4 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case 4:
            parent[f"{key}s"] = parent.pop(key)
        case _:
            other, there = rng.choice(places)
            parent[key] = copy.deepcopy(other[there])
    written = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if whole:
        return head + written
    return b"\n".join([*lines[:place], written, *lines[place + 1 :]])


def nodes(document: Any, depth: int) -> Any:
    """The containers and keys of every value of a JSON document."""
    if depth < 20 and isinstance(document, dict | list):
        keys = list(document) if isinstance(document, dict) else range(len(document))
        for key in keys:
            yield document, key
            yield from nodes(document[key], depth + 1)


def in_words(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Replace, remove, repeat or exchange words."""
    words = WORD.findall(data)
    if not words:
        return rng.choice(ODD_WORDS)
    at, other = rng.randrange(len(words)), rng.randrange(len(words))
    match rng.randrange(6):
        case 0 | 1:
            words[at] = rng.choice(ODD_WORDS)
        case 2:
            words.insert(at, rng.choice(ODD_WORDS))
        case 3:
            del words[at : at + rng.choice((1, 1, 2, 8))]
        case 4:
            words[at], words[other] = words[other], words[at]
        case _:
            words[at:at] = words[min(at, other) : min(at, other) + 20]
    return b"".join(words)


def in_bytes(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Flip, overwrite, remove or insert bytes."""
    if not data:
        return rng.randbytes(8)
    # headers, where the decisions are, are damaged as often as the rest
    end = min(len(data), 64) if rng.random() < 0.5 else len(data)
    at, length = rng.randrange(end), rng.choice((1, 1, 2, 4, 8, 64))
    match rng.randrange(7):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.randbytes(length) + data[at + length :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + rng.randbytes(length) + data[at:]
        case 4 | 5:
            code = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(code)
            number = rng.choice(NUMBERS) & ((1 << (8 * size)) - 1)
            return data[:at] + struct.pack(code, number) + data[at + size :]
        case _:
            return data[: rng.randrange(len(data))]


def in_archive(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage a file inside an archive, whose checksums then hold, as `torch.save` writes it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError, RuntimeError):
        return in_bytes(data, rng, others)
    if not files:
        return data
    changed = rng.choice([next(iter(files)), *files])  # the first is the pickle
    damage = rng.choice((in_bytes, in_bytes, in_words))
    files[changed] = damage(files[changed], rng, others)
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w") as archive:
        warnings.simplefilter("ignore")  # a name twice
        for name, content in files.items():
            archive.writestr(name, content)
    return written.getvalue()


def spliced(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Put a piece of another input in the place of a piece of this one."""
    other = rng.choice(others) if others else data
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    begin, end = sorted(rng.randrange(len(other) + 1) for _ in range(2))
    return data[:start] + other[begin:end] + data[stop:]


DAMAGES: tuple[Damage, ...] = (in_json, in_json, in_words, in_words, in_bytes, in_bytes, spliced)


def smaller(data: bytes, still: Callable[[bytes], bool], tries: int = 300) -> bytes:
    """Remove pieces of an input as long as it still shows the same; roughly the least.

    Args:
        data: The input.
        still: Whether an input shows it.
        tries: How often that may be asked.
    """
    size = max(len(data) // 2, 1)
    while tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            shorter, tries = data[:at] + data[at + size :], tries - 1
            if still(shorter):
                data = shorter
            else:
                at += size
        if size == 1:
            break
        size //= 2
    return data
