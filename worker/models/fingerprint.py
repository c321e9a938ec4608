"""Tells weights from others under the same name, so that no video is begun by one model and ended by another."""

import hashlib
from pathlib import Path
from typing import Final

from huggingface_hub import try_to_load_from_cache

PARTS: Final = ("text_encoder", "transformer", "vae")
SUFFIXES: Final = (".safetensors", ".bin")

PIECES: Final = 64
PIECE_BYTES: Final = 2**20
"""Of a file that is larger than all pieces together only these are read, evenly spread: some 0.1 s for each file, where
28 GB would take most of a minute."""


def fingerprint(source: str) -> str:
    """What identifies the weights of a pipeline that was loaded: of a hub id its revision, of a folder a digest.

    Training changes nearly all tensors, so a few pieces of a large file tell it from another. Raises FileNotFoundError
    for a hub id of which there is no copy here.
    """
    folder = Path(source)
    if not folder.is_dir():
        found = revision(source)
        if found is None:
            raise FileNotFoundError(f"there is no copy of {source} here")
        return found
    digest = hashlib.sha256()
    files = [file for part in PARTS for file in (folder / part).iterdir() if file.suffix in SUFFIXES]
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        _read_into(digest, file, size)
    return digest.hexdigest()


def revision(hub_id: str) -> str | None:
    """The revision of a model of the hub that is used here, None if there is no copy of it yet."""
    config = try_to_load_from_cache(hub_id, "transformer/config.json")
    return Path(config).parents[1].name if isinstance(config, str) else None


def _read_into(digest: "hashlib._Hash", file: Path, size: int) -> None:
    last = max(0, size - PIECE_BYTES)
    whole = size <= PIECES * PIECE_BYTES
    starts = range(0, size, PIECE_BYTES) if whole else [last * n // (PIECES - 1) for n in range(PIECES)]
    with file.open("rb") as opened:
        for start in starts:
            opened.seek(start)
            digest.update(opened.read(PIECE_BYTES))
