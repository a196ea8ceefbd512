"""Ways to damage a file, for the fuzzing of readers: by accident and on purpose."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

NUMBER = re.compile(rb"\d+")
NUMBERS = [b"0", b"-1", b"7", b"nan", b"inf", b"1e308", b"", b"x", b"4294967295", b"9" * 19]
NUMBERS += [b"9" * 40, b"9" * 5000, b"0x7f", b"1_0", "٣".encode()]
EXTREMES = [0, 1, 2**7, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]

Mutation = Callable[[bytes, Random], bytes]


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip(data: bytes, rng: Random) -> bytes:
    """Flip 1 to 8 bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_head(data: bytes, rng: Random) -> bytes:
    """Flip bits where formats keep their headers."""
    return flip(data[:128], rng) + data[128:]


def splice(data: bytes, rng: Random) -> bytes:
    """Write one part of the file over another."""
    start, target = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    part = data[start : start + rng.randint(1, 64)]
    return data[:target] + part + data[target + len(part) :]


def insert(data: bytes, rng: Random) -> bytes:
    """Insert a block: zeros, noise, line ends or a repetition."""
    size, at = rng.choice([1, 2, 7, 64, 4096]), rng.randrange(len(data) + 1)
    noise = bytes(rng.getrandbits(8) for _ in range(min(size, 64)))
    block = rng.choice([b"\0" * size, noise, b"\n" * size, b",;\t \r"[:size], data[:size]])
    return data[:at] + block + data[at:]


def delete(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice([1, 2, 7, 64]) :]


def number(data: bytes, rng: Random) -> bytes:
    """Replace a number written in digits."""
    numbers = list(NUMBER.finditer(data))
    if not numbers:
        return flip(data, rng)
    at = rng.choice(numbers)
    return data[: at.start()] + rng.choice(NUMBERS) + data[at.end() :]


def extreme(data: bytes, rng: Random) -> bytes:
    """Overwrite 2, 4 or 8 bytes with an extreme binary number."""
    size = rng.choice([2, 4, 8])
    value = (rng.choice(EXTREMES) % 256**size).to_bytes(size, rng.choice(["little", "big"]))
    at = rng.randrange(len(data) + 1)
    return data[:at] + value + data[at + size :]


RAW: list[Mutation] = [cut, flip, flip, flip_head, splice, insert, delete, number, number, extreme]


class _Open:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


class _System(_Open):
    def __reduce__(self) -> tuple[object, tuple[str]]:  # type: ignore[override]
        return os.system, (f"touch {self.path}",)


def payload(data: bytes, rng: Random, canary: Path) -> bytes:
    """A pickle that makes the file ``canary``: alone, as a .npy of objects, or in the file."""
    bomb = rng.choice([_Open, _System])(canary)
    code = pickle.dumps(bomb if rng.random() < 0.5 else {"format": bomb}, rng.randrange(5))
    form = rng.randrange(4)
    if form == 0:
        return code
    if form == 1:
        head = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + code
    at = rng.randrange(len(data) + 1)
    return data[:at] + code + data[at if form == 2 else at + len(code) :]


def mutate(data: bytes, rng: Random, canary: Path) -> bytes:
    """Damage a file; inside a zip, mostly a member whose checksums are made right again."""
    if data.startswith(b"PK") and rng.random() < 0.6:
        return _mutate_member(data, rng, canary)
    if rng.random() < 0.1:
        return payload(data, rng, canary)
    for _ in range(rng.choice([1, 1, 2, 3])):
        data = rng.choice(RAW)(data, rng)
    return data


def _mutate_member(data: bytes, rng: Random, canary: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    # A member is as likely as any other, but what pickle reads is the one that matters.
    pickles = [name for name in members if name.endswith(".pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.6 else list(members))
    members[name] = mutate(members[name], rng, canary)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as new:
        for member, content in members.items():
            new.writestr(member, content)
    return out.getvalue()
