"""Names of the RQ queues and the one function that is ever enqueued.

One queue per model and priority: a worker holds one model and serves its queues in order of priority.
The job's id is the video's id; its only argument too. RQ is the transport, the video's record is the truth.
"""

from __future__ import annotations

from rq import Queue
from rq.executions import ExecutionRegistry
from rq.job import Job
from rq.serializers import JSONSerializer

from app.jobs.connection import Connection
from app.jobs.job import PRIORITIES, Priority, VideoSpec

JOB_FUNCTION = "worker.generate.run_video"


def queue_name(model: str, priority: Priority) -> str:
    """Name of the queue of a model's videos of one priority."""
    return f"longtake:{model}:{priority}"


def model_and_priority(name: str) -> tuple[str, str]:
    """What a queue's name was made of."""
    model, _, priority = name.removeprefix("longtake:").rpartition(":")
    return model, priority


def queue_names(model: str) -> list[str]:
    """A model's queues, most urgent first."""
    return [queue_name(model, priority) for priority in PRIORITIES]


def waiting_key(name: str) -> str:
    """Key of the list of ids that wait in a queue (RQ's own)."""
    return f"rq:queue:{name}"


def leases_key(name: str) -> str:
    """Key of the sorted set of a queue's running jobs by the time their lease ends (RQ's started registry)."""
    return f"rq:wip:{name}"


def enqueue(
    connection: Connection, spec: VideoSpec, *, pipeline: Connection | None = None, at_front: bool = False
) -> Job:
    """Puts a video in line. With `pipeline` the enqueue is part of that transaction.

    No RQ timeout, no expiry of waiting jobs, no stored result: the record in `VideoStore` holds all that.
    """
    queue = Queue(queue_name(spec.model, spec.priority), connection=connection, serializer=JSONSerializer)
    return queue.enqueue_call(
        JOB_FUNCTION,
        args=(spec.id,),
        job_id=spec.id,
        timeout=-1,
        result_ttl=0,
        failure_ttl=0,
        description=f"video {spec.id}",
        at_front=at_front,
        pipeline=pipeline,
    )


def leave(pipeline: Connection, spec: VideoSpec) -> None:
    """Takes a video out of line, as part of that transaction; nothing happens if it does not stand there."""
    pipeline.lrem(waiting_key(queue_name(spec.model, spec.priority)), 0, spec.id)


def dequeue(pipeline: Connection, spec: VideoSpec) -> None:
    """Takes a video out of line as `leave` does, and removes what RQ keeps about it."""
    leave(pipeline, spec)
    forget(pipeline, spec.id)


def forget(connection: Connection, video_id: str) -> None:
    """Removes what RQ keeps about a video that stands in no line and is not being made."""
    connection.delete(Job.key_for(video_id), ExecutionRegistry.key_template.format(video_id))
