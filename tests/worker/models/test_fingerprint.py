"""Weights are told from others under the same name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from worker.models import fingerprint as fingerprints
from worker.models.fingerprint import PARTS, fingerprint, revision
from worker.models.registry import load_model


def weights(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def change(file: Path, at: int) -> None:
    """Another value in the same place: neither the size nor the names of tensors tell."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_model_has_the_fingerprint_of_its_folder_wherever_that_lies(
    tiny_folder: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    assert load_model(str(elsewhere)).fingerprint == fingerprint(str(tiny_folder))


@pytest.mark.parametrize("part", PARTS)
def test_one_other_value_is_another_fingerprint(tiny_folder: Path, tmp_path: Path, part: str) -> None:
    changed = Path(shutil.copytree(tiny_folder, tmp_path / "changed"))
    change(weights(changed, part), -1)
    assert fingerprint(str(changed)) != fingerprint(str(tiny_folder))


def test_of_a_large_file_a_few_pieces_are_read_from_its_beginning_to_its_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "PIECES", 3)
    monkeypatch.setattr(fingerprints, "PIECE_BYTES", 16)
    changed = Path(shutil.copytree(tiny_folder, tmp_path / "changed"))
    file = weights(changed, "vae")
    found = {fingerprint(str(changed))}
    middle = (file.stat().st_size - 16) // 2
    for at in (0, middle, -1):
        change(file, at)
        found.add(fingerprint(str(changed)))
    assert len(found) == 4
    change(file, middle - 20)
    assert fingerprint(str(changed)) in found


def test_a_model_of_the_hub_has_the_fingerprint_of_its_weights_whatever_its_revision(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    copy = tmp_path / "models--owner--model"
    (copy / "refs").mkdir(parents=True)
    for commit in ("c0ffee" + 34 * "0", "decade" + 34 * "0"):  # one whose description was changed
        shutil.copytree(tiny_folder, copy / "snapshots" / commit)
        (copy / "refs" / "main").write_text(commit)
        assert revision("owner/model") == commit
        assert fingerprint("owner/model") == fingerprint(str(tiny_folder))
    change(weights(copy / "snapshots" / commit, "vae"), -1)
    assert fingerprint("owner/model") != fingerprint(str(tiny_folder))
    with pytest.raises(FileNotFoundError, match="no copy of owner/other"):
        fingerprint("owner/other")
    assert revision("owner/other") is None


def test_files_that_are_not_loaded_do_not_count(tiny_folder: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(tiny_folder, tmp_path / "more"))
    loaded = weights(more, "vae")
    for name in (f"{loaded.stem}.fp16.safetensors", f"{loaded.stem}.bin"):
        loaded.with_name(name).write_bytes(b"other")
    assert fingerprint(str(more)) == fingerprint(str(tiny_folder))
