"""What a client uploads for a video to begin with: taken from the request, decoded elsewhere, stored as frames."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from app.errors import APIError, invalid
from app.forms import FilePart
from app.jobs.job import ModelCard, Reference, VideoSpec
from app.schemas import CreateVideo
from app.settings import Settings
from app.specification import begin_with
from app.storage import ObjectStore
from app.storage.objects import reference_key
from app.upload_contract import UNDECODABLE, Decoded, Refused, Task

log = logging.getLogger(__name__)

PARAM = "input_reference"

# What the decoder inherits: where Python finds its modules, and nothing that could hold a secret.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "VIRTUAL_ENV")
# Numerical libraries start a thread for each core otherwise, and reserve memory for each.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def reference_of(request: CreateVideo, settings: Settings) -> FilePart | None:
    """The file that a request brings along. Raises `APIError` 400 and 413."""
    given = request.input_reference
    return _from_data_url(given, settings) if isinstance(given, str) else given


def _from_data_url(url: str, settings: Settings) -> FilePart:
    """The file that a data: URL holds; the type it names does not count. Raises `APIError` 400 and 413."""
    head, comma, text = url.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().endswith(";base64"):
        raise invalid("image_url must be a data: URL in base64.", param=PARAM)
    if len(text) > settings.max_data_url_bytes:
        raise APIError(
            413,
            f"The data: URL is longer than {settings.max_data_url_bytes} characters. Send the file in a form.",
            code="file_too_large",
            param=PARAM,
        )
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise invalid("The data: URL is not base64.", param=PARAM) from error
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller, as an uploaded file is
    file.write(data)
    file.flush()
    return FilePart(file, hashlib.sha256(data).hexdigest())


def store_reference(
    upload: FilePart, spec: VideoSpec, card: ModelCard, settings: Settings, objects: ObjectStore
) -> VideoSpec:
    """Decodes an upload for a video and stores its frames; returns the video with its reference.

    Blocks, for seconds: the decoder is a process of its own. Raises `APIError` 400 for what cannot be taken, among it
    a clip that leaves nothing of the video to be made, and `StorageError`.
    """
    task = Task(
        width=spec.width,
        height=spec.height,
        fps=spec.fps,
        first_chunk_frames=card.frames_of_chunks(1),
        chunk_frames=card.frames_of_chunks(2) - card.frames_of_chunks(1),
        max_pixels=settings.max_upload_pixels,
        max_video_pixels=settings.max_upload_video_pixels,
        max_seconds=settings.max_upload_seconds,
        max_frames=settings.max_upload_frames,
        memory_bytes=settings.upload_memory_bytes,
        cpu_seconds=settings.upload_cpu_seconds,
        wall_seconds=settings.upload_wall_seconds,
    )
    with tempfile.NamedTemporaryFile(prefix="longtake-", suffix=".mkv") as target:
        answer = _decode(upload, target.fileno(), task)
        if isinstance(answer, Refused):
            raise invalid(answer.message, param=PARAM, code=answer.code)
        reference = Reference(**answer.model_dump(), sha256=upload.sha256)
        with_reference = begin_with(spec, reference, card)
        objects.put(reference_key(spec.id), Path(target.name))
    return with_reference


def _decode(upload: FilePart, target: int, task: Task) -> Decoded | Refused:
    upload.file.seek(0)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "app.upload_decoder", str(target), task.model_dump_json()],
            stdin=upload.file,
            capture_output=True,
            pass_fds=(target,),
            env=environment | _ONE_THREAD,
            timeout=task.wall_seconds + 5.0,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.warning("decoding an upload took more than %.0f s", task.wall_seconds)
        return UNDECODABLE
    kind, _, facts = done.stdout.decode(errors="replace").partition(" ")
    if done.returncode == 0 and kind == "Decoded":
        return Decoded.model_validate_json(facts)
    reason = done.stderr[-2000:].decode(errors="backslashreplace").strip()
    if done.returncode == 0 and kind == "Refused":
        refused = Refused.model_validate_json(facts)
        log.info("an upload was refused (%s): %s", refused.code, reason)
        return refused
    # It was ended by a limit, or by the file: memory, time, or a fault of a decoder that stays inside.
    log.warning("the decoder of an upload ended with %d: %s", done.returncode, reason)
    return UNDECODABLE
