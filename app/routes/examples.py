"""An example of every object that the API answers with, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VIDEO_ID = "video_01a2050caf12e20fb0073cc2cf0bdc60"
_EVENT_ID = "evt_01a2050cb1f37c0c8a52b5f9a0f6d111"
_AT = 1_795_377_451

_VIDEO: dict[str, Any] = {
    "id": _VIDEO_ID,
    "object": "video",
    "model": "builtin",
    "status": "in_progress",
    "progress": 40,
    "created_at": _AT,
    "prompt": "A calm lake",
    "prompts": [{"at": 0, "text": "A calm lake"}, {"at": 30, "text": "A storm over the lake"}],
    "pending_prompts": [],
    "seconds": "60",
    "size": "128x128",
    "priority": "normal",
    "eta_seconds": 21.5,
    "chunks_ready": 29,
    "chunks_total": 72,
    "seconds_ready": 24.042,
    "first_chunk_at": _AT + 2.25,
    "seed": 7,
    "fps": 24,
    "frames": 1440,
    "metadata": {"scene": "12"},
    "attempts": 1,
    "playlist_url": f"/v1/videos/{_VIDEO_ID}/stream.m3u8",
    "events_url": f"/v1/videos/{_VIDEO_ID}/events",
}
_CHUNK: dict[str, Any] = {
    "object": "video.chunk",
    "index": 1,
    "start_seconds": 0.708333,
    "duration_seconds": 0.833333,
    "frames": 20,
    "bytes": 18_211,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "url": f"/v1/videos/{_VIDEO_ID}/chunks/1/content",
    "created_at": _AT + 3.5,
}
_MODEL: dict[str, Any] = {
    "id": "builtin",
    "object": "model",
    "created": _AT,
    "owned_by": "longtake",
    "fps": 24,
    "sizes": ["128x128"],
    "default_size": "128x128",
    "default_seconds": 60,
    "min_seconds": 0.25,
    "max_seconds": 3600,
    "chunk_seconds": 0.833333,
    "guidance_scale": 3,
    "num_inference_steps": 10,
    "num_inference_steps_multiple_of": 5,
    "example_prompts": ["a red ball bouncing off the walls on a black background"],
    "served": True,
}
_DELIVERY: dict[str, Any] = {
    "id": _EVENT_ID,
    "object": "webhook.delivery",
    "type": "video.completed",
    "created_at": _AT,
    "status": "delivered",
    "next_attempt_at": None,
    "attempts": [{"at": _AT + 0.2, "duration_ms": 81, "status_code": 204, "error": None}],
}
_PAGE = {"object": "list", "has_more": False}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "VideoObject": _VIDEO,
    "VideoList": {**_PAGE, "data": [_VIDEO], "first_id": _VIDEO_ID, "last_id": _VIDEO_ID},
    "VideoDeleted": {"id": _VIDEO_ID, "object": "video.deleted", "deleted": True},
    "ChunkObject": _CHUNK,
    "ChunkList": {**_PAGE, "data": [_CHUNK], "first_index": 1, "last_index": 1},
    "ModelObject": _MODEL,
    "ModelList": {"object": "list", "data": [_MODEL]},
    "WebhookDelivery": _DELIVERY,
    "WebhookDeliveryList": {**_PAGE, "data": [_DELIVERY], "first_id": _EVENT_ID, "last_id": _EVENT_ID},
    "WebhookSecret": {
        "object": "webhook.secret",
        "secret": "whsec_bG9uZ3Rha2UgZXhhbXBsZSBzZWNyZXQ=",
        "created_at": _AT,
        "previous": [],
    },
    "WebhookBody": {
        "id": _EVENT_ID,
        "object": "event",
        "created_at": _AT,
        "type": "video.completed",
        "data": {"id": _VIDEO_ID},
    },
    "Health": {"status": "ok", "version": "0.1.0"},
    "Readiness": {
        "status": "ready",
        "redis": "ok",
        "storage": "ok",
        "keys": "ok",
        "workers": 1,
        "models": ["builtin"],
    },
    "ErrorObject": {
        "error": {
            "message": "Invalid seconds: the longest video is 3600 s.",
            "type": "invalid_request_error",
            "param": "seconds",
            "code": "invalid_value",
        }
    },
}
