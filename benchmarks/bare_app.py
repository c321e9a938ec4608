"""The least that takes a request for a video: FastAPI checks the body, RQ puts the job in line.
Nothing is recorded; nothing can be listed, watched, repeated or cancelled. What `python -m benchmarks post` compares
the service with.
"""

from __future__ import annotations

import os
from uuid import uuid4

from fastapi import FastAPI
from pydantic import BaseModel
from redis import Redis
from rq import Queue

from app.jobs.queue import JOB_FUNCTION

app = FastAPI()
queue = Queue("bare", connection=Redis.from_url(os.environ["LONGTAKE_REDIS_URL"]))


class Request(BaseModel):
    """What is asked for."""

    prompt: str
    seconds: float
    seed: int


@app.post("/v1/videos")
def create(request: Request) -> dict[str, str]:
    """Puts a job in line."""
    video_id = f"video_{uuid4().hex}"
    queue.enqueue_call(JOB_FUNCTION, args=(video_id, request.model_dump()), job_id=video_id, timeout=-1)
    return {"id": video_id}


@app.get("/healthz")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}
