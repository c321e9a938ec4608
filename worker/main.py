"""The worker process: loads the model once, then makes videos in one or more slots until it is told to stop.

RQ brings the ids of videos; a slot is an RQ worker in a thread, without fork, so that all share the one model. What
RQ believes about a job is transport only: the video's record and its fence decide. A slot that dies with its process
leaves a lease behind, and when that runs out any worker puts the video back in line (`VideoStore.reconcile`).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from redis.exceptions import RedisError
from rq import SimpleWorker, worker_registration
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from app.jobs import queue
from app.jobs.connection import Connection, connect
from app.jobs.job import ModelCard, VideoSpec
from app.jobs.line import Taken
from app.jobs.store import FenceLost, VideoGone, VideoStore
from app.logs import configure_logging
from app.settings import Settings, get_settings
from app.signals import Signals
from app.storage import ObjectStore, StorageError, StoreMisconfigured, store_of
from worker.devices import device_failed, device_of, ran_out_of_memory
from worker.engine import Engine
from worker.generate import GPU_ERROR, OUT_OF_MEMORY, Generation, Outcome, Runtime
from worker.media.encode import EncoderSettings, EncoderUnusable, check_encoder
from worker.models.base import Geometry, ModelLoadError, VideoModel
from worker.models.registry import ModelDescription, describe, load_model
from worker.scratch import sweep_scratch

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_BAD_SETTINGS = 2
EXIT_NO_MODEL = 3
EXIT_STALLED = 70
EXIT_OUT_OF_MEMORY = 71
EXIT_GPU_FAILED = 72
EXIT_DOES_NOT_FIT = 73

# How long an idle slot waits before it looks at the queues again.
IDLE_SECONDS = 0.1

# The longest a shutdown asked for by another thread waits for the main one.
SIGNAL_SECONDS = 1.0

# How often an idle slot renews its entry in RQ's list of workers.
HEARTBEAT_SECONDS = 60.0

# Lost videos are looked for this many times per lease. The time that costs is taken off the lease itself, so that a
# worker silent for `lease_seconds` has lost its videos by then, not only from then on.
CHECKS_PER_LEASE = 8

# There on Linux where the driver of an NVIDIA GPU is.
GPU_FILE = Path("/dev/nvidia0")

# Share of a GPU's free memory that the videos of all slots may take together, and the most slots chosen for it.
GPU_MEMORY_SHARE = 0.8
MAX_CHOSEN_SLOTS = 8


class _NoDeathPenalty(BaseDeathPenalty):
    """Jobs have no time limit; RQ's own needs signals, which only the main thread gets."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Held:
    """The running video of a slot: its fence, and its lease's member in RQ's registry."""

    spec: VideoSpec
    fence: str
    member: str
    taken: Taken


class Slot(SimpleWorker):
    """An RQ worker in a thread: one video at a time. Of RQ it keeps the job format and the registries."""

    death_penalty_class = _NoDeathPenalty

    def __init__(self, runtime: Runtime, name: str, connection: Connection) -> None:
        self.runtime = runtime
        self.generation: Generation | None = None
        self._held: Held | None = None
        self._holding = threading.Lock()
        self._taken: Taken | None = None
        super().__init__(
            queue.queue_names(runtime.model.name),
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            log_job_description=False,
        )

    @property
    def lease_seconds(self) -> float:
        lease = self.runtime.settings.lease_seconds
        return lease - lease / CHECKS_PER_LEASE

    # -- what RQ does otherwise and must not --------------------------------------------------------------

    def _install_signal_handlers(self) -> None:
        """Signals belong to the process's main thread."""

    def subscribe(self) -> None:
        """No commands over pub/sub: the record has the flags."""

    def unsubscribe(self) -> None:
        """See `subscribe`."""

    def check_for_suspension(self, burst: bool) -> None:
        """There is no `rq suspend` here: one question less to Redis per video."""

    def register_birth(self) -> None:
        """Names are unique; what stands under this one is from before Redis was away."""
        self.connection.delete(self.key)
        for rq_queue in self.queues:  # killed workers leave their names
            worker_registration.clean_worker_registry(rq_queue)
        super().register_birth()  # type: ignore[no-untyped-call]

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Keeps RQ's dashboards up to date; nothing depends on it."""
        with suppress(RedisError):
            super().heartbeat(timeout, pipeline)

    def teardown(self) -> None:
        """See `heartbeat`."""
        with suppress(RedisError):
            super().teardown()  # type: ignore[no-untyped-call]

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ's clean-up would fail abandoned jobs by its own count; `VideoStore.reconcile` takes its place."""
        return False

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds of the lease; RQ's own would be minutes."""
        return max(1, round(self.lease_seconds))

    # -- the loop -----------------------------------------------------------------------------------------

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Any] | None:
        """Waits for a video, by priority; None when the process is to stop.

        Taking it out of line and leasing it are one step: a worker that dies right after loses nothing.
        """
        self.heartbeat()
        beat = time.monotonic()
        while not self.runtime.shutdown.is_set():
            with suppress(RedisError):  # the heartbeat thread tells the log
                if not self.runtime.company.closed and (found := self._take()) is not None:
                    return found
            if time.monotonic() - beat > HEARTBEAT_SECONDS:
                self.heartbeat()
                beat = time.monotonic()
            self.runtime.shutdown.wait(IDLE_SECONDS)
        return None

    def _take(self) -> tuple[Job, Any] | None:
        taken = self.runtime.store.take(self.runtime.model.name, self.name, self.lease_seconds)
        if taken is None:
            return None
        found = self.queue_class._fetch_dequeued_job(
            self.connection,
            queue.waiting_key(taken.queue),
            taken.video_id,
            job_class=self.job_class,
            serializer=self.serializer,
            death_penalty_class=self.death_penalty_class,
        )
        if found is None:
            # No job stands behind this id. If a video does, reconcile makes it a new one.
            self.connection.zrem(queue.leases_key(taken.queue), taken.member)
            return None
        self._taken = taken
        return found

    def execute_job(self, job: Job, queue: Any) -> None:
        """Makes the video, or as much of it as its turn allows, and takes the execution out of RQ."""
        taken, self._taken = self._taken, None
        if taken is None:
            raise RuntimeError("a job that was not taken")
        try:
            execution = self.prepare_execution(job)
            self.prepare_job_execution(job)
        except RedisError as error:
            log.warning("Redis went away (%s)", type(error).__name__, extra=self._about(taken))
            return
        outcome = Outcome.DROPPED
        try:
            self.generation = Generation(
                self.runtime,
                taken.video_id,
                execution.composite_key,
                lambda spec, fence: self._hold_from_now(Held(spec, fence, execution.composite_key, taken)),
            )
            outcome = self.generation.run()
        except Exception:
            log.exception("unexpected error", extra=self._about(taken))
        finally:
            with self._holding:
                self._held = self.generation = None
            self._settle(job, execution, taken, outcome)

    def _about(self, taken: Taken) -> dict[str, str]:
        return {"video": taken.video_id, "worker": self.name}

    def _hold_from_now(self, held: Held) -> None:
        self._held = held
        with suppress(RedisError):
            self.hold()
            self.connection.zrem(queue.leases_key(held.taken.queue), held.taken.member)

    def hold(self) -> None:
        """Renews the lease of the running video, if there is one."""
        # Locked, because a renewal that comes after the video's end would leave a lease behind.
        with self._holding:
            if (held := self._held) is None:
                return
            with suppress(FenceLost, VideoGone):  # the generation finds out by itself
                self.runtime.store.hold(
                    held.spec,
                    held.fence,
                    held.member,
                    self.lease_seconds,
                    in_queue=held.taken.queue,
                    worker=self.runtime.worker,
                )

    def _settle(self, job: Job, execution: Any, taken: Taken, outcome: Outcome) -> None:
        """Tells RQ. If Redis is away it stays as it is: the lease runs out, and the record says what is left to do."""
        try:
            with self.connection.pipeline() as pipe:
                self.cleanup_execution(job, pipe, execution)
                pipe.zrem(queue.leases_key(taken.queue), taken.member)
                pipe.delete(execution.key)
                if outcome is Outcome.DONE:
                    # Not job.delete(): that reads executions whose entries have run out, and fails on them.
                    pipe.delete(job.key, job.execution_registry.key)
                pipe.execute()
        except RedisError as error:
            log.warning(
                "Redis is away (%s); the lease of the video runs out", error, extra=self._about(taken)
            )

    def run_until_shutdown(self) -> None:
        """RQ's loop, started again whenever it ends because Redis was away."""
        while not self.runtime.shutdown.is_set():
            try:
                self.work(logging_level="WARNING")
            except RedisError:
                self.runtime.shutdown.wait(IDLE_SECONDS)  # the heartbeat thread tells the log


class Process:
    """Everything that runs beside the slots: heartbeats, lost videos, the watchdog, and the end."""

    def __init__(self, settings: Settings, card: ModelCard, runtime: Runtime, slots: list[Slot]) -> None:
        self._settings, self._card, self._runtime, self._slots = settings, card, runtime, slots
        self._threads = [
            threading.Thread(target=slot.run_until_shutdown, name=slot.name, daemon=True) for slot in slots
        ]

    def run(self, signals: Signals | None) -> int:
        """Until there is a signal, or the shutdown flag is set (also where it is spoiled); returns the exit code."""
        shutdown = self._runtime.shutdown
        for target, name in ((self._beat, "heartbeat"), (self._watch, "watchdog")):
            threading.Thread(target=target, name=name, daemon=True).start()
        for thread in self._threads:
            thread.start()
        while not shutdown.is_set():
            if signals is None:
                shutdown.wait()
            elif signals.wait(SIGNAL_SECONDS):
                shutdown.set()
        log.info("stopping")
        for slot in self._slots:
            if (generation := slot.generation) is not None:
                generation.wake.set()
        for thread in self._threads:
            thread.join(3 * self._settings.control_seconds + 10)
        self._runtime.engine.close(timeout_seconds=0.5)
        with suppress(RedisError):
            self._runtime.store.worker_gone(self._runtime.worker, self._info())
        if self._runtime.spoiled.code == OUT_OF_MEMORY:
            log.critical("ran out of memory; ending this process, so that a new one starts with all of it")
            return EXIT_OUT_OF_MEMORY
        if self._runtime.spoiled.code == GPU_ERROR:
            log.critical("the GPU failed; ending this process, which cannot use it any more")
            return EXIT_GPU_FAILED
        return EXIT_OK

    def _beat(self) -> None:
        """Renews the leases and the liveness of this worker, and looks for videos that others have lost."""
        settings, runtime = self._settings, self._runtime
        pause = min(settings.heartbeat_seconds, settings.lease_seconds / CHECKS_PER_LEASE)
        announced, away = float("-inf"), False
        while not runtime.shutdown.is_set():
            try:
                if time.monotonic() - announced >= settings.heartbeat_seconds:
                    for slot in self._slots:
                        slot.hold()
                    # Every time: Redis may have come back without its data between two heartbeats.
                    runtime.store.register_model(self._card)
                    runtime.store.worker_alive(runtime.worker, self._info(), settings.lease_seconds)
                    announced = time.monotonic()
                for video_id in runtime.store.reconcile(settings.lease_seconds):
                    log.warning("was lost; back in line", extra={"video": video_id, "worker": runtime.worker})
                if away:
                    log.info("Redis is back")
                away = False
            except RedisError as error:
                if not away:
                    log.warning("Redis is not reachable (%s)", type(error).__name__)
                away = True
            except Exception:  # without this thread the slots would take videos whose leases nobody renews
                log.exception("unexpected error; the heartbeat goes on")
            runtime.shutdown.wait(pause)

    def _info(self) -> dict[str, Any]:
        return {
            "name": self._runtime.worker,
            "model": self._card.name,
            "device": str(self._runtime.model.device),
            "slots": len(self._slots),
            "busy": sum(slot.generation is not None for slot in self._slots),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def _watch(self) -> None:
        """Ends the process when a forward or decoder hangs: a hung GPU still heartbeats. Another worker goes on."""
        while not self._runtime.shutdown.wait(min(1.0, self._settings.stall_seconds / 4)):
            try:
                reason = self._hangs()
            except Exception:  # without this thread a worker that hangs would keep its videos for ever
                log.exception("unexpected error; the watchdog goes on")
                continue
            if reason is not None:
                log.critical("%s; ending this process", reason)
                logging.shutdown()
                os._exit(EXIT_STALLED)

    def _hangs(self) -> str | None:
        """What has hung for so long that it will not come back, in words."""
        limit, engine = self._settings.stall_seconds, self._runtime.engine
        generations = [slot.generation for slot in self._slots]
        busy = max(0.0 if one is None else one.stopwatch.seconds for one in generations)
        if not engine.alive:
            return "the engine has failed"
        if engine.busy_seconds() > limit:
            return f"no forward has finished for {limit:.0f} s"
        if busy > limit:
            return f"a decoder or encoder has been at one chunk for {limit:.0f} s"
        return None


def main(settings: Settings | None = None) -> int:
    """Runs a worker until SIGTERM or SIGINT, and then ends the process.

    Returns the exit code when it cannot start, after one line on stderr, and when it is not in the main thread.
    """
    settings = settings or get_settings()
    _configure_logging(settings)
    in_main_thread = threading.current_thread() is threading.main_thread()
    try:
        code = _run(settings, Signals(signal.SIGTERM, signal.SIGINT) if in_main_thread else None)
    except ModelLoadError as error:
        print(f"longtake worker: {error.message}", file=sys.stderr)  # noqa: T201
        return EXIT_NO_MODEL
    except (StoreMisconfigured, _BadSettings) as error:
        print(f"longtake worker: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_SETTINGS
    except _CannotUse as error:
        log.error("%s", error)
        return error.code
    if in_main_thread:
        # All is handed over. The interpreter would take a second or more to take the libraries apart.
        logging.shutdown()
        os._exit(code)
    return code


class _BadSettings(Exception):
    """Settings this worker cannot start with."""


class _CannotUse(Exception):
    """The device cannot be used now: later, when others have left it, or on another machine."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _usable(device: torch.device) -> Iterator[None]:
    """Raises `_CannotUse` where there is not enough memory on the device, or it fails."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if ran_out_of_memory(error):
            free = ""
            if device.type == "cuda":
                free = f" ({torch.cuda.mem_get_info(device)[0] / 2**30:.2f} GiB are free)"
            message = f"the model does not fit into the memory of {device}{free}: {reason}"
            raise _CannotUse(EXIT_DOES_NOT_FIT, message) from error
        if device_failed(error):
            raise _CannotUse(EXIT_GPU_FAILED, f"{device} failed under the model: {reason}") from error
        raise


def _run(settings: Settings, signals: Signals | None) -> int:
    if settings.redis_url is None:
        raise _BadSettings("LONGTAKE_REDIS_URL is not set")
    device = choose_device(settings.device, settings.worker_number)
    torch.set_num_threads(settings.torch_threads)
    description = describe(settings.model)
    _try_encoder(EncoderSettings(settings.codec, settings.crf), description.geometry)
    log.info("loading model %s on %s", description.name, device)
    started = time.monotonic()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the loaders are imported
    with _ended_at_once(signals), _usable(device):
        _without_progress_bars()
        model = load_model(settings.model, device=device)
    log.info("model %s loaded on %s in %.1f s", model.name, device, time.monotonic() - started)
    return serve(settings, model, model_card(model, description, settings.model), threading.Event(), signals)


def _without_progress_bars() -> None:
    """The loaders draw none between the lines of the log. Imported here: what is wrong with settings is told sooner."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def serve(
    settings: Settings,
    model: VideoModel,
    card: ModelCard,
    shutdown: threading.Event,
    signals: Signals | None = None,
) -> int:
    """Makes videos with a loaded model until a signal comes or `shutdown` is set; returns the exit code.

    Waits for Redis and the store while they are away. Raises `StoreMisconfigured`.
    """
    if settings.redis_url is None:
        raise _BadSettings("LONGTAKE_REDIS_URL is not set")
    with _ended_at_once(signals):
        if removed := sweep_scratch():
            log.info("removed %d temporary folder(s) of workers that were killed", removed)
        objects = _open_objects(settings, shutdown)
        if objects is None:
            return EXIT_OK
        url = settings.redis_url.get_secret_value()
        store = VideoStore(
            connect(url),
            origin=settings.public_url or "",
            max_events=settings.max_events,
            starvation_seconds=settings.starvation_seconds,
            turn_seconds=settings.turn_seconds,
            keep_seconds=settings.keep_seconds,
        )
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        with _usable(model.device):
            count = choose_slots(settings.slots, model)
        runtime = Runtime(settings, store, objects, model, Engine(model, batch=count), name, shutdown)
        slots = _open_slots(runtime, url, count)
        if slots is None:
            return EXIT_OK
    with signals or nullcontext():
        log.info("worker %s is ready: %d slot(s)", name, count)
        return Process(settings, card, runtime, slots).run(signals)


def _try_encoder(encoder: EncoderSettings, geometry: Geometry) -> None:
    """Raises `_BadSettings` for an encoder that does not work here in every size."""
    try:
        for width, height in geometry.sizes:
            check_encoder(encoder, width, height, geometry.fps)
    except EncoderUnusable as error:
        raise _BadSettings(f"LONGTAKE_CODEC, LONGTAKE_CRF: {error}") from error


def model_card(model: VideoModel, description: ModelDescription, loaded_as: str) -> ModelCard:
    """What the API is told about a loaded model."""
    return ModelCard(
        name=model.name,
        fps=model.geometry.fps,
        sizes=tuple(f"{width}x{height}" for width, height in model.geometry.sizes),
        default_size="{}x{}".format(*model.geometry.default_size),
        temporal_factor=model.geometry.temporal_factor,
        chunk_latents=model.sampler.chunk_latents,
        chunks_in_flight=model.sampler.chunks_in_flight,
        forwards_per_shift=model.sampler.forwards_per_shift,
        guidance_scale=model.sampler.guidance_scale,
        prompt_tokens=description.prompt_tokens,
        created_at=time.time(),
        example_prompts=description.example_prompts,
        loaded_as=loaded_as,
    )


def _open_slots(runtime: Runtime, url: str, count: int) -> list[Slot] | None:
    """The slots; waits for Redis, and gives up (None) only on shutdown."""
    away = False
    while not runtime.shutdown.is_set():
        try:
            return [Slot(runtime, f"{runtime.worker}-{number}", connect(url)) for number in range(count)]
        except RedisError as error:
            if not away:
                log.warning("Redis is not reachable (%s); waiting for it", type(error).__name__)
            away = True
            runtime.shutdown.wait(0.5)
    return None


def _open_objects(settings: Settings, shutdown: threading.Event) -> ObjectStore | None:
    """The store; waits for one that is away, and gives up (None) only on shutdown. Raises `StoreMisconfigured`."""
    away = False
    while not shutdown.is_set():
        try:
            return store_of(settings)
        except StoreMisconfigured:
            raise
        except StorageError as error:
            if not away:
                log.warning("storage is not reachable (%s); waiting for it", error)
            away = True
            shutdown.wait(1.0)
    return None


def choose_device(wanted: str, worker_number: int = 0) -> torch.device:
    """`auto` is this worker's share of the GPUs, if there are any. Raises `_BadSettings` for one that is not there."""
    if wanted == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus and (sign := _sign_of_a_gpu()) is not None:
            log.warning("no GPU can be used, although %s: running on the CPU", sign)
        return torch.device("cuda", worker_number % gpus) if gpus else torch.device("cpu")
    try:
        return device_of(wanted)
    except ValueError as error:
        raise _BadSettings(str(error)) from error


def _sign_of_a_gpu() -> str | None:
    """What says that this machine has an NVIDIA GPU, or that this container was given one."""
    if GPU_FILE.exists():
        return f"{GPU_FILE} is there"
    given = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    return None if given in ("", "void", "none") else f"NVIDIA_VISIBLE_DEVICES is {given}"


def choose_slots(wanted: int, model: VideoModel) -> int:
    """Videos at once: one on a CPU, as many as fit into the free memory of a GPU."""
    if wanted or model.device.type != "cuda":
        return wanted or 1
    encoding, forward, decoding = measure_peak_bytes(model)
    free, _ = torch.cuda.mem_get_info(model.device)
    room, needed = int(GPU_MEMORY_SHARE * free), forward + decoding
    # Prompts are encoded between two forwards, and chunks decoded at any time.
    fit = min(room // max(1, needed), (room - encoding) // max(1, decoding))
    chosen = max(1, min(MAX_CHOSEN_SLOTS, fit))
    log.info("one video takes %.2f GiB, %.2f GiB are free: %d slot(s)", needed / 2**30, free / 2**30, chosen)
    return chosen


def measure_peak_bytes(model: VideoModel) -> tuple[int, int, int]:
    """GPU memory that prompts, a guided forward of one video and one decoded chunk each take, measured one by one.

    A forward's has the keys and values of two batches of prompts: a model may keep the last beside the present one.
    """
    device, config = model.device, model.sampler
    channels, height, width = model.geometry.latent_shape(*model.geometry.default_size)
    rows = 1 if config.guidance_scale == 1.0 else 2
    peaks: list[int] = []

    @contextmanager
    def measured() -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        peaks.append(int(torch.cuda.max_memory_allocated(device) - before))

    with torch.inference_mode():
        window = torch.zeros((rows, channels, config.window_latents, height, width), device=device)
        sigmas = torch.full((rows, config.window_latents), 0.5, device=device)
        with measured():
            prompts = model.encode_prompt([""] * rows + ["a"] * rows)
        with measured():
            for batch in prompts.tensor_split(2):
                model.velocity(window, sigmas, batch)
        with measured():
            model.open_decoder().push(window[:1, :, : config.chunk_latents])
    torch.cuda.empty_cache()
    encoding, forward, decoding = peaks
    return encoding, forward, decoding


@contextmanager
def _ended_at_once(signals: Signals | None) -> Iterator[None]:
    """Signals end the process: it holds nothing yet, and loading a model can take minutes."""
    if signals is None:
        yield
        return
    with ExitStack() as stack:
        for number in signals.numbers:
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: os._exit(EXIT_OK)))
        yield


def _configure_logging(settings: Settings) -> None:
    """As everywhere; libraries speak only of what goes wrong."""
    configure_logging(settings)
    for name in ("rq.worker", "rq.job", "rq.queue", "httpx", "filelock", "PIL", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


if __name__ == "__main__":
    sys.exit(main())
