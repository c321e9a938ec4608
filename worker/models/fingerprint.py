"""Tells weights from others under the same name, so that no video is begun by one model and ended by another."""

import hashlib
from pathlib import Path
from typing import Final

from huggingface_hub import try_to_load_from_cache

PARTS: Final = ("text_encoder", "transformer", "vae")
SUFFIXES: Final = (".safetensors", ".bin")
"""Of a part that has weights in both formats the first ones are loaded."""

PIECES: Final = 64
PIECE_BYTES: Final = 2**20
"""Of a file that is larger than all pieces together only these are read, evenly spread: some 0.1 s for each file, where
28 GB would take most of a minute."""


def fingerprint(source: str) -> str:
    """What identifies the weights of a pipeline that was loaded, from a folder or a hub id: a digest.

    Another revision of a hub's model with the same weights, as when its description was changed, has the same one.
    Files of variants (``model.fp16.safetensors``), which nothing here loads, do not count. Training changes nearly all
    tensors, so a few pieces of a large file tell it from another. Raises FileNotFoundError for a hub id of which there
    is no copy here.
    """
    folder = Path(source)
    if not folder.is_dir():
        config = _cached_config(source)
        if config is None:
            raise FileNotFoundError(f"there is no copy of {source} here")
        folder = config.parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for part in PARTS for file in _weights(folder / part)):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        _read_into(digest, file, size)
    return digest.hexdigest()


def revision(hub_id: str) -> str | None:
    """The revision of a model of the hub that is used here, None if there is no copy of it yet."""
    config = _cached_config(hub_id)
    return None if config is None else config.parents[1].name


def _cached_config(hub_id: str) -> Path | None:
    config = try_to_load_from_cache(hub_id, "transformer/config.json")
    return Path(config) if isinstance(config, str) else None


def _weights(part: Path) -> list[Path]:
    for suffix in SUFFIXES:
        found = [file for file in part.iterdir() if file.suffix == suffix and "." not in file.stem]
        if found:
            return found
    return []


def _read_into(digest: "hashlib._Hash", file: Path, size: int) -> None:
    last = max(0, size - PIECE_BYTES)
    whole = size <= PIECES * PIECE_BYTES
    starts = range(0, size, PIECE_BYTES) if whole else [last * n // (PIECES - 1) for n in range(PIECES)]
    with file.open("rb") as opened:
        for start in starts:
            opened.seek(start)
            digest.update(opened.read(PIECE_BYTES))
