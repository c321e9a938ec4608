"""How fast POST /v1/videos takes requests, as a ratio to the least an app can do (`benchmarks.bare_app`).

Both run as one process on the same Redis and are measured in turn, several rounds in one run: the ratio says something
on any machine, the absolute numbers only on this one.
"""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median
from typing import Any

from redis import Redis

from app.jobs.connection import connect
from app.jobs.store import VideoStore, owner_key
from benchmarks.service import MODEL_CARD, percentile, running_api

_BODY = json.dumps({"prompt": "a red ball rolls over green grass", "seconds": 60, "seed": 7}).encode()
_REQUEST = (
    b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    + str(len(_BODY)).encode()
    + b"\r\n\r\n"
    + _BODY
)


async def _one_connection(port: int, requests: int) -> list[float]:
    """Sends requests one after the other on one connection; seconds each took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took = []
    for _ in range(requests):
        began = time.perf_counter()
        writer.write(_REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
        took.append(time.perf_counter() - began)
        if not head.startswith(b"http/1.1 200 "):
            raise RuntimeError(f"a request was refused: {body.decode(errors='replace')}")
    writer.close()
    await writer.wait_closed()
    return took


async def _load(port: int, connections: int, requests: int) -> dict[str, float]:
    began = time.perf_counter()
    each = requests // connections
    took = await asyncio.gather(*(_one_connection(port, each) for _ in range(connections)))
    seconds = [one for connection in took for one in connection]
    return {
        "per_second": len(seconds) / (time.perf_counter() - began),
        "p50_ms": 1000 * percentile(seconds, 0.5),
        "p99_ms": 1000 * percentile(seconds, 0.99),
    }


def post(requests: int, connections: int, rounds: int) -> dict[str, Any]:
    """The figures, from `rounds` rounds of `requests` requests to each app."""
    runs: dict[str, list[dict[str, float]]] = {"service": [], "bare": []}
    with running_api() as service, running_api(bare=True, redis_url=service.redis_url) as bare:
        ports = {"service": service.port, "bare": bare.port}
        for number in range(rounds + 1):
            for name, port in ports.items():
                with Redis.from_url(service.redis_url) as redis:
                    redis.flushall()
                    VideoStore(connect(service.redis_url)).register_model(MODEL_CARD)
                    run = asyncio.run(_load(port, connections, requests))
                    made = redis.zcard(owner_key("")) if name == "service" else redis.llen("rq:queue:bare")
                if made != requests // connections * connections:
                    raise RuntimeError(f"{name} took {made} of {requests} requests")
                if number:  # the first round warms both up
                    runs[name].append(run)
                    print(f"round {number}: {name:8} {run['per_second']:7.0f} requests/s", flush=True)
    rates = {name: median(run["per_second"] for run in run_of) for name, run_of in runs.items()}
    return {
        "requests": requests,
        "connections": connections,
        "per_second": rates,
        "service_to_bare": rates["service"] / rates["bare"],
        "runs": runs,
    }
