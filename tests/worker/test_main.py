"""The worker process: how it starts, how it ends, and what others do when it dies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.embedded import EmbeddedRedis
from app.jobs.job import Status
from app.jobs.store import VideoStore
from app.settings import Settings
from worker import main as worker_main
from worker.engine import Engine
from worker.models.base import ModelLoadError


@pytest.fixture
def undisturbed(work: Any) -> Callable[[int], list[str]]:
    """Digests of a video that nothing happened to."""

    def make(frames: int) -> list[str]:
        worker = work.start()
        spec = work.spec(frames)
        work.store.create(spec)
        work.wait(spec.id, "completed")
        worker.stop()
        found: list[str] = work.digests(spec.id)
        return found

    return make


def test_a_video_survives_sigkill_of_its_worker_at_any_point_to_the_same_bytes(
    work: Any, undisturbed: Any
) -> None:
    expected = undisturbed(160)
    spec = work.spec(160)
    work.store.create(spec)
    worker = work.process({"step_seconds": 0.05})
    for chunks, pause in ((1, 0.0), (9, 0.013)):
        successor = work.process({"step_seconds": 0.05}) if chunks < 9 else None
        video = work.wait(spec.id, chunks=chunks)
        assert video.state.status is Status.IN_PROGRESS
        time.sleep(pause)
        worker.kill()
        worker = successor
    work.start()
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED
    assert 2 <= video.state.attempts <= 3
    assert work.digests(spec.id) == expected


def test_sigterm_hands_a_video_over_at_once_and_exits_0(work: Any, undisturbed: Any) -> None:
    expected = undisturbed(160)
    spec = work.spec(160)
    # Neither its end nor that of its lease may come before it is told to stop, or instead of that.
    worker = work.process({"step_seconds": 0.15}, lease_seconds=30)
    work.store.create(spec)
    held_by = work.wait(spec.id, chunks=3).state.worker
    work.start()
    work.eventually(lambda: len(work.store.workers()) == 2)
    worker.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert worker.process.wait(60) == 0
    ended = time.monotonic() - asked
    work.eventually(lambda: work.video(spec.id).state.worker not in ("", held_by))
    taken_over = time.monotonic() - asked
    assert ended < 3
    assert taken_over < 3
    assert len(work.store.workers()) == 1
    video = work.wait(spec.id, "completed")
    assert video.state.attempts == 1, "a shutdown uses up no attempt"
    assert work.digests(spec.id) == expected
    assert spec.id in worker.words
    assert "a circle" not in worker.words
    assert "Traceback" not in worker.words


def test_sigterm_while_the_model_loads_ends_the_process_at_once(work: Any) -> None:
    worker = work.process({"load_seconds": 600.0})
    work.eventually(lambda: "loading model" in worker.words, 60)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0  # of 600 s


def test_a_zombie_that_wakes_up_commits_nothing_and_goes_on_with_other_work(
    work: Any, undisturbed: Any
) -> None:
    expected = undisturbed(120)
    spec = work.spec(120)
    work.store.create(spec)
    zombie = work.process({"step_seconds": 0.1})
    work.wait(spec.id, chunks=3)
    zombie.process.send_signal(signal.SIGSTOP)
    heir = work.start(work.model(step_seconds=0.1))
    work.eventually(lambda: work.video(spec.id).state.attempts == 2, 60)
    zombie.process.send_signal(signal.SIGCONT)
    work.wait(spec.id, "completed")
    assert work.digests(spec.id) == expected
    heir.stop()
    other = work.spec(1)
    work.store.create(other)
    work.wait(other.id, "completed")
    assert "taken over" in zombie.words


def test_a_worker_that_slept_past_its_lease_takes_its_video_back_while_nobody_else_has_it(
    work: Any,
) -> None:
    spec = work.spec(24 * 600)
    work.store.create(spec)
    sleeper = work.process({"step_seconds": 0.05})
    held_by = work.wait(spec.id, chunks=2).state.worker
    sleeper.process.send_signal(signal.SIGSTOP)
    work.eventually(lambda: work.store.reconcile(2.0) == [spec.id])
    lost = work.video(spec.id).state
    assert (lost.status, lost.worker) == (Status.QUEUED, "")
    sleeper.process.send_signal(signal.SIGCONT)
    work.eventually(lambda: work.video(spec.id).state.worker == held_by)
    back = work.wait(spec.id, chunks=lost.chunks_ready + 2).state
    assert (back.status, back.attempts) == (Status.IN_PROGRESS, 1)
    assert "taken over" not in sleeper.words


def test_a_forward_that_hangs_ends_the_process_and_the_video_fails_after_its_attempts(work: Any) -> None:
    spec = work.spec(prompt="hang")
    work.store.create(spec)
    worker = work.process(stall_seconds=0.5, max_attempts=1)
    assert worker.process.wait(60) == worker_main.EXIT_STALLED
    assert "no forward has finished" in worker.words
    work.start(max_attempts=1)
    video = work.wait(spec.id, "failed")
    assert video.state.error is not None
    assert video.state.error.code == "attempts_exhausted"


def test_redis_killed_and_started_again_in_mid_video_costs_nothing(
    work: Any, own_redis: EmbeddedRedis
) -> None:
    work.use(own_redis.url)
    model = work.model(step_seconds=0.01)
    worker = work.start(model)
    expected, disturbed = work.spec(120), work.spec(120)
    work.store.create(expected)
    work.wait(expected.id, "completed")
    model.step_seconds = 0.05
    work.store.create(disturbed)
    work.wait(disturbed.id, chunks=3)
    model.hold.clear()  # or it would have ended before all is written down
    work.store.redis.execute_command("WAITAOF", 1, 0, 5000)
    own_redis.kill()
    model.hold.set()

    def standing_still() -> bool:
        forwards = len(model.rows)
        time.sleep(0.3)
        return len(model.rows) == forwards

    work.eventually(standing_still)
    own_redis.start()
    video = work.wait(disturbed.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED
    assert work.digests(disturbed.id) == work.digests(expected.id)
    work.eventually(work.store.models)
    worker.stop()


def test_a_worker_waits_for_redis_and_can_be_stopped_meanwhile(work: Any, own_redis: EmbeddedRedis) -> None:
    work.use(own_redis.url)
    own_redis.kill()
    work.start().stop()
    worker = work.start()
    own_redis.start()
    spec = work.spec(1)
    work.store.create(spec)
    work.wait(spec.id, "completed")
    own_redis.kill()
    worker.stop()


def test_a_worker_stopped_while_redis_is_away_leaves_the_video_to_the_next(
    work: Any, own_redis: EmbeddedRedis
) -> None:
    work.use(own_redis.url)
    model = work.model(step_seconds=0.05)
    worker = work.start(model, lease_seconds=2.0)
    spec = work.spec(120)
    work.store.create(spec)
    work.wait(spec.id, chunks=3)
    model.hold.clear()  # or it would have ended before all is written down
    work.store.redis.execute_command("WAITAOF", 1, 0, 5000)
    own_redis.kill()
    model.hold.set()
    worker.stop()
    own_redis.start()
    work.start(lease_seconds=2.0)
    video = work.wait(spec.id, "completed", "failed")
    assert video.state.status is Status.COMPLETED


def test_a_worker_tells_what_it_can_make_and_that_it_lives(work: Any) -> None:
    worker = work.start(slots=2)
    (info,) = work.eventually(work.store.workers)
    assert (info["model"], info["slots"], info["busy"], info["pid"]) == ("stand-in", 2, 0, os.getpid())
    card = work.store.models()["stand-in"]
    assert (card.fps, card.sizes, card.default_size, card.levels) == (24, ("16x16", "32x16"), "16x16", 6)
    worker.stop()
    assert work.store.workers() == []
    assert "stand-in" in work.store.models()


def test_heartbeat_and_watchdog_go_on_after_an_unexpected_error(
    work: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing_at_first(kind: type, name: str) -> list[None]:
        real, calls = getattr(kind, name), list[None]()

        def call(self: Any, *given: Any) -> Any:
            calls.append(None)
            if len(calls) == 1:
                raise MemoryError(name)
            return real(self, *given)

        monkeypatch.setattr(kind, name, call)
        return calls

    beats = failing_at_first(VideoStore, "register_model")
    looks = failing_at_first(Engine, "busy_seconds")
    work.start(stall_seconds=1.0)
    work.eventually(lambda: len(beats) > 2 and len(looks) > 2, 20)
    assert len(work.store.workers()) == 1
    told = [record.getMessage() for record in caplog.records if record.exc_info]
    assert sorted(told) == [
        "unexpected error; the heartbeat goes on",
        "unexpected error; the watchdog goes on",
    ]


def environment_of(settings: Settings, **environment: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LONGTAKE_")}
    assert settings.redis_url is not None
    return env | {"LONGTAKE_REDIS_URL": settings.redis_url.get_secret_value(), **environment}


def run_worker(settings: Settings, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.main"],
        env=environment_of(settings, **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("fault", ["missing", "not json", "unsupported"])
def test_a_model_that_cannot_be_served_is_one_line_and_exit_code_3(
    work: Any, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    if fault != "missing":
        folder.mkdir()
        content = {"_class_name": "CogVideoXPipeline"}
        (folder / "model_index.json").write_text("{" if fault == "not json" else json.dumps(content))
        for part in ("transformer", "vae"):
            (folder / part).mkdir()
            (folder / part / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    assert worker_main.main(work.settings(model=str(folder))) == worker_main.EXIT_NO_MODEL
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longtake worker:")]
    assert len(lines) == 1
    assert str(folder) in lines[0]


def test_the_process_itself_exits_3_without_a_traceback(work: Any, tmp_path: Path) -> None:
    done = run_worker(work.settings(), LONGTAKE_MODEL=str(tmp_path / "nothing"))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "neither a folder nor a hub id" in done.stderr


def test_weights_that_cannot_be_loaded_are_exit_code_3(
    work: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(spec: str, **_: Any) -> Any:
        raise ModelLoadError("model_corrupt", "model x: vae: cut short")

    monkeypatch.setattr(worker_main, "load_model", broken)
    assert worker_main.main(work.settings(model="builtin")) == worker_main.EXIT_NO_MODEL
    assert "longtake worker: model x: vae: cut short\n" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["load_model", "measure_peak_bytes"])
@pytest.mark.parametrize(
    "fault",
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 GiB.\nMore"),
            73,
            "(1.50 GiB are free)",
        ),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
            72,
            "cuda failed under",
        ),
    ],
)
def test_a_model_that_its_gpu_cannot_hold_is_one_line_and_an_exit_code_of_its_own(
    work: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    fault: tuple[Exception, int, str],
) -> None:
    error, code, told = fault

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    model = work.model()
    model.device = torch.device("cuda")
    monkeypatch.setattr(worker_main, "choose_device", lambda *_: model.device)
    monkeypatch.setattr(worker_main, "load_model", lambda *_, **__: model)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**29, 2**31))
    monkeypatch.setattr(worker_main, where, failing)
    assert worker_main.main(work.settings(model="builtin")) == code
    *_, line = capsys.readouterr().err.splitlines()
    assert " ERROR " in line
    assert told in line
    assert line.endswith(str(error).splitlines()[0])


def test_the_workers_of_a_machine_share_its_gpus_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that are not there: only their count is made up."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [worker_main.choose_device("auto", number).index for number in range(4)] == [0, 1, 0, 1]
    assert worker_main.choose_device("cpu", 1).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert worker_main.choose_device("auto", 1).type == "cpu"


@pytest.mark.parametrize(
    ("given", "file", "told"),
    [
        ("", "/nowhere", None),
        ("void", "/nowhere", None),
        ("none", "/nowhere", None),
        ("all", "/nowhere", "NVIDIA_VISIBLE_DEVICES is all"),
        ("void", "/dev/null", "/dev/null is there"),
    ],
)
def test_a_gpu_that_does_not_start_is_told_before_the_cpu_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str, file: str, told: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(worker_main, "GPU_FILE", Path(file))
    assert worker_main.choose_device("auto").type == "cpu"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (told is not None)
    assert told is None or told in warnings[0]


class Gpu:
    """The counters of a GPU that is not there, moved by a stand-in for a model that says what it takes."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch, **peaks: int) -> None:
        self._allocated = self._peak = 100
        for name, function in [
            ("reset_peak_memory_stats", lambda device: setattr(self, "_peak", self._allocated)),
            ("memory_allocated", lambda device: self._allocated),
            ("max_memory_allocated", lambda device: self._peak),
            ("empty_cache", lambda: None),
        ]:
            monkeypatch.setattr(torch.cuda, name, function)
        for name, peak in peaks.items():
            monkeypatch.setattr(model, name, self._taking(peak, getattr(model, name)))

    def _taking(self, bytes_taken: int, action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*given: Any) -> Any:
            self._peak = max(self._peak, self._allocated + bytes_taken)
            self._allocated += 1  # what stays
            return action(*given)

        return act


def test_a_video_needs_memory_for_a_forward_and_a_decoded_chunk_at_once(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = work.model()
    Gpu(model, monkeypatch, encode_prompt=900, velocity=50, open_decoder=40)
    assert worker_main.measure_peak_bytes(model) == (900, 51, 40)
    assert model.rows == [1, 1], "with two batches of prompts"


@pytest.mark.parametrize(("encoding", "slots"), [(0, 4), (400, 4), (640, 4), (680, 3), (790, 1), (5000, 1)])
def test_slots_are_as_many_as_fit_into_the_memory_of_a_gpu(
    work: Any, monkeypatch: pytest.MonkeyPatch, encoding: int, slots: int
) -> None:
    """Of 1000 bytes 800 may be taken: 200 by each video, of which 40 while prompts are encoded."""
    model = work.model()
    model.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(worker_main, "measure_peak_bytes", lambda model: (encoding, 160, 40))
    assert worker_main.choose_slots(0, model) == slots
    assert worker_main.choose_slots(7, model) == 7


def test_bad_settings_are_one_line_and_exit_code_2(
    work: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker_main.main(work.settings(redis_url=None)) == 2
    assert (
        worker_main.main(work.settings(device="cuda:7" if not shutil.which("nvidia-smi") else "xpu:7")) == 2
    )
    model = work.model()
    with pytest.raises(worker_main.StoreMisconfigured):
        worker_main.serve(work.settings(storage_url="ftp://x"), model, work.card(model), threading.Event())
    error = capsys.readouterr().err
    assert "LONGTAKE_REDIS_URL is not set" in error
    assert "cannot be used on this machine" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("fields", [{"codec": "hevc", "crf": 52}, {"codec": "h264_nvenc"}])
def test_a_worker_whose_encoder_does_not_work_does_not_load_its_model(
    work: Any, fields: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEVC ends at 51, and no encoder of a GPU takes frames as small as the built-in model's."""
    monkeypatch.setattr(worker_main, "load_model", lambda *_, **__: pytest.fail("loaded"))
    assert worker_main.main(work.settings(model="builtin", **fields)) == 2
    assert re.search(rf"LONGTAKE_CODEC.* at 128x128: {fields['codec']}", capsys.readouterr().err)


def test_logs_are_json_on_request_and_hold_no_password(work: Any, own_redis: EmbeddedRedis) -> None:
    work.use(own_redis.url)
    worker = work.process(log_json=True, log_level="DEBUG")
    spec = work.spec(1)
    work.store.create(spec)
    work.wait(spec.id, "completed")
    own_redis.kill()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    lines = [json.loads(line) for line in worker.words.splitlines()]
    assert any(line.get("video") == spec.id for line in lines)
    assert own_redis.password not in worker.words


def test_loading_a_real_model_draws_nothing_between_the_lines_of_the_log(work: Any) -> None:
    settings = work.settings()
    env = environment_of(
        settings, LONGTAKE_LOG_JSON="true", LONGTAKE_STORAGE_URL=settings.resolved_storage_url
    )
    command = [sys.executable, "-m", "worker.main"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        told = []
        for line in worker.stderr:
            told.append(json.loads(line)["message"])
            if " is ready" in told[-1]:
                worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    assert any("model longtake-scenes-128 loaded" in line for line in told)
