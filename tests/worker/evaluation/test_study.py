"""A whole evaluation on a tiny model: what it makes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app import cli
from worker.evaluation import cases, figures, oracle, report, study
from worker.evaluation.cases import Case, EvaluationError
from worker.evaluation.methods import METHODS, REFERENCE
from worker.evaluation.study import Bench, Job, Measurement, Plan, VideoSet
from worker.models.registry import describe, load_model
from worker.training import scenes

TWO = Plan((VideoSet(2, 2, ("rendered", "abrupt-ends")),), segment_seconds=2)


def quiet(line: str) -> None:
    """No progress."""


def test_every_method_is_made_and_measured(smoke: Any) -> None:
    rows = [name for name, method in METHODS.items() if not method.own_weights] + ["no-level-shift (trained)"]
    assert sorted(video["row"] for video in smoke["videos"]) == sorted(rows)
    assert smoke["missing"] == 0
    for video in smoke["videos"]:
        assert video["frames"] == 48
        assert [(s["from_second"], s["to_second"]) for s in video["segments"]] == [(0, 2)]
        assert {"follows", "present", "jitter"} <= video["segments"][0]["oracle"].keys()
        assert 0 < video["drift"]["flickering"] <= 1
        assert len(video["features"]) == 1
        sampled = METHODS[video["method"]].sample is not None
        assert (video["cost"]["forwards"] > 0) == sampled
        assert 100 < video["cost"]["peak_mb"] < 4000  # of the whole process
        assert video["date"] == smoke["machine"]["date"]
    rendered = next(video for video in smoke["videos"] if video["row"] == "rendered")
    assert rendered["segments"][0]["oracle"]["follows"]


def test_the_summary_is_that_of_the_videos(smoke: Any) -> None:
    assert smoke["summary"] == json.loads(json.dumps(figures.summarise(smoke["videos"])))
    assert set(smoke["summary"]["2"]["rows"]) == {v["row"] for v in smoke["videos"]} - {REFERENCE}


def test_all_methods_but_the_reference_have_the_same_seed(smoke: Any) -> None:
    assert {video["seed"] for video in smoke["videos"] if video["row"] != REFERENCE} == {0}


def test_nothing_is_made_twice(smoke_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    shutil.copytree(smoke_folder, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("000.json")}
    lines: list[str] = []
    variants = {"no-level-shift": str(tiny_folder)}
    results = study.run(
        Plan.read("smoke"), model=str(tiny_folder), output=output, variants=variants, say=lines.append
    )
    assert lines[-1] == f"{len(before)} videos, {len(before)} of them made before"
    assert {path: path.stat().st_mtime_ns for path in output.rglob("000.json")} == before
    assert results["summary"] == json.loads((output / "results.json").read_text())["summary"]


def test_an_evaluation_that_ran_out_of_time_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    def run(minutes: float | None) -> Any:
        return study.run(TWO, model=str(tiny_folder), output=tmp_path, budget_minutes=minutes, say=quiet)

    with pytest.raises(EvaluationError, match="more minutes"):
        run(0)
    (tmp_path / "videos/2s").mkdir(parents=True)
    job, *_ = study.jobs(TWO, str(tiny_folder), {}, None)
    study.make(Bench(str(tiny_folder), "cpu", tmp_path, 2), job)
    assert run(0)["missing"] == 5
    whole = run(None)
    assert whole["missing"] == 0
    assert len(whole["videos"]) == 6  # two prompts of two methods and the reference


def test_other_weights_are_another_video(tiny_folder: Path, tmp_path: Path) -> None:
    plan = TWO.only(("abrupt-ends",))
    (job, *_) = study.jobs(plan, str(tiny_folder), {}, None)
    bench = Bench(str(tiny_folder), "cpu", tmp_path, 2)
    study.make(bench, job)
    assert bench.made(job) is not None
    assert bench.made(replace(job, seed=9)) is None
    assert replace(bench, suite="vbench").made(job) is None  # it has no clips
    changed = tmp_path / "changed"
    shutil.copytree(tiny_folder, changed)
    serving = json.loads((changed / "longtake.json").read_text())
    (changed / "longtake.json").write_text(json.dumps(serving | {"name": "other"}))
    assert bench.made(replace(job, spec=str(changed))) is None


def test_weights_that_differ_anywhere_are_others(tiny_folder: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_folder, changed)
    assert study.weights(str(changed)) == study.weights(str(tiny_folder))
    study.weights.cache_clear()
    path = next((changed / "transformer").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert study.weights(str(changed)) != study.weights(str(tiny_folder))


def test_figures_of_other_code_are_measured_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, *_ = study.jobs(TWO.only(("rendered",)), str(tiny_folder), {}, None)
    bench = Bench(str(tiny_folder), "cpu", tmp_path, 2)
    study.make(bench, job)
    source, package = Path(study.__file__).parents[1], tmp_path / "worker"
    for folder in ("evaluation", "models", "sampler", "training"):
        shutil.copytree(source / folder, package / folder)
    monkeypatch.setattr(study, "__file__", str(package / "evaluation" / "study.py"))
    measures = package / "evaluation" / "oracle.py"
    for change, same in (("\n# A comment.\n", True), ("\nMORE = 1\n", False)):
        measures.write_text(measures.read_text() + change)
        study.code.cache_clear()
        assert (bench.made(job) is not None) == same
    study.code.cache_clear()


def test_a_method_that_cannot_make_a_video_does_not_keep_the_others(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has no use for the model, another breaks in one video."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    serving = json.loads((folder / "longtake.json").read_text())
    alone = serving["sampler"] | {"context_chunks": 0}
    (folder / "longtake.json").write_text(json.dumps(serving | {"sampler": alone}))
    sample = METHODS["abrupt-ends"].sample

    def breaks(model: Any, wanted: Any, take: Any) -> None:
        if wanted.seed == 1:
            raise FloatingPointError("not finite\nat all")
        sample(model, wanted, take)  # type: ignore[misc]

    monkeypatch.setitem(METHODS, "abrupt-ends", replace(METHODS["abrupt-ends"], sample=breaks))
    plan = replace(TWO, sets=(VideoSet(2, 2, ("replacement-with-noise", "abrupt-ends", "rendered")),))
    lines: list[str] = []
    found = study.run(plan, model=str(folder), output=tmp_path / "out", say=lines.append)
    made = ["abrupt-ends", *[REFERENCE] * 2, *["rendered"] * 2]
    assert sorted(video["row"] for video in found["videos"]) == made
    assert found["missing"] == 0
    assert [(one["row"], one["number"]) for one in found["failed"]] == [
        ("replacement-with-noise", 0),
        ("replacement-with-noise", 1),
        ("abrupt-ends", 1),
    ]
    assert len([line for line in lines if "failed" in line]) == 2  # what is hopeless is tried once
    report.write(tmp_path / "out" / "results.json", tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "- abrupt-ends (2 s prompt 1): FloatingPointError: not finite\n" in text
    assert "- replacement-with-noise (2 s prompt 0, 2 s prompt 1): it replaces the frames" in text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["failed"] == found["failed"]

    with pytest.raises(EvaluationError, match="no video was made: replacement-with-noise: it replaces"):
        study.run(plan.only(("replacement-with-noise",)), model=str(folder), output=tmp_path / "o", say=quiet)


def test_figures_of_an_older_version_are_measured_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, *_ = study.jobs(TWO.only(("rendered",)), str(tiny_folder), {}, None)
    bench = Bench(str(tiny_folder), "cpu", tmp_path, 2)
    monkeypatch.setattr(study, "SCHEMA", study.SCHEMA - 1)
    study.make(bench, job)
    assert bench.made(job) is not None
    monkeypatch.undo()
    assert bench.made(job) is None


def test_a_plan_can_have_another_setting_of_the_sampler_than_the_model(
    tiny_folder: Path, tmp_path: Path
) -> None:
    own = describe(str(tiny_folder)).sampler
    folder = tmp_path / "served"
    shutil.copytree(tiny_folder, folder)
    serving = json.loads((folder / "longtake.json").read_text())
    serving["sampler"]["graded"] = True
    (folder / "longtake.json").write_text(json.dumps(serving))
    changes = {"chunk_latents": 1, "chunks_in_flight": 6, "graded": False}
    plan = Plan((VideoSet(2, 1, ("progressive",)),), segment_seconds=2, sampler=changes)
    found = study.run(plan, model=str(folder), output=tmp_path / "found", say=quiet)
    assert found["sampler"] == asdict(replace(own, **changes))
    assert found["model"]["sampler"] == asdict(replace(own, graded=True))
    latents = describe(str(folder)).geometry.latents_for_frames(48)
    assert found["videos"][0]["cost"]["forwards"] == own.forwards_per_shift * (latents + 5)
    text = report.text(found, "")
    assert "Chunks of 1 latent, 6 in flight" in text
    assert f"another setting: chunks of {own.chunk_latents} latent" in text
    alike = found | {"sampler": asdict(own)}
    assert "another setting (the row `graded`): " in report.text(alike, "")
    assert "another setting" not in report.text(found | {"sampler": found["model"]["sampler"]}, "")
    with pytest.raises(EvaluationError, match="chunk_latents must be a whole number of at least 1"):
        study.run(
            replace(plan, sampler={"chunk_latents": 0}), model=str(folder), output=tmp_path / "no", say=quiet
        )
    with pytest.raises(EvaluationError, match="chunk_latent'"):
        study.run(
            replace(plan, sampler={"chunk_latent": 1}), model=str(folder), output=tmp_path / "no", say=quiet
        )


@pytest.mark.slow
def test_several_processes_find_the_same_figures(tiny_folder: Path, tmp_path: Path) -> None:
    def run(name: str, processes: int) -> list[Any]:
        output = tmp_path / name
        found = study.run(TWO, model=str(tiny_folder), output=output, processes=processes, say=quiet)
        return [{k: v for k, v in video.items() if k != "cost"} for video in found["videos"]]

    assert run("one", 1) == run("two", 2)


def test_memory_does_not_grow_with_the_length(tiny_folder: Path, tmp_path: Path) -> None:
    model, bench = load_model(str(tiny_folder)), Bench(str(tiny_folder), "cpu", tmp_path, 5)
    piece = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)

    def peak(seconds: int) -> int:
        job = Job(
            "x", "progressive", str(tiny_folder), Case("a cat", "fast motion", None), 0, seconds, 0, True
        )
        tracemalloc.start()
        measurement = Measurement(bench, job, model, seconds * 24)
        for _ in range(seconds * 3):
            measurement.take(piece)
        figures = measurement.finish()
        assert figures["segments"][-1]["to_second"] == seconds
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # what is imported and cached once
    assert peak(40) < 1.2 * peak(10)


RED = scenes.SceneAttributes("black", "red", "square", "bounce")


def clip(attributes: scenes.SceneAttributes, frames: int) -> Any:
    """A true scene."""
    scene = scenes.sample_scenes([attributes], np.random.default_rng(0))
    return oracle.to_uint8(scenes.render(scene, torch.arange(frames), 64)[0])


@pytest.mark.parametrize(("seconds", "segment_seconds"), [(4, 10), (4, 2), (5, 2)])
def test_an_ending_that_breaks_is_told_from_one_that_does_not(
    tiny_folder: Path, tmp_path: Path, seconds: int, segment_seconds: int
) -> None:
    model, bench = load_model(str(tiny_folder)), Bench(str(tiny_folder), "cpu", tmp_path, segment_seconds)
    right, second = clip(RED, seconds * 24), scenes.FPS
    noise = np.random.default_rng(0).integers(0, 256, (2 * second, 64, 64, 3), dtype=np.uint8)
    gray, blue = (
        clip(replace(RED, **change), seconds * 24) for change in ({"background": "gray"}, {"color": "blue"})
    )
    endings = {
        "another background": gray[-2 * second :],
        "another color": blue[-2 * second :],
        "noise": noise,
        "nothing for two seconds": np.full_like(noise, right[0, 0, 0]),
        "nothing for one second": np.full_like(noise[:second], right[0, 0, 0]),
        "frozen for two seconds": np.repeat(right[-2 * second, None], 2 * second, axis=0),
        "frozen for one second": np.repeat(right[-second, None], second, axis=0),
        "a second object": np.maximum(right[-2 * second :], np.roll(blue[-2 * second :], 32, axis=2)),
        "nothing": right[:0],
    }
    for words, ending in endings.items():
        case = Case("red square", "one object moving", RED)
        job = Job("x", "rendered", str(tiny_folder), case, 0, seconds, 0, stills=False)
        measurement = Measurement(bench, job, model, len(right))
        measurement.take(np.concatenate([right[: len(right) - len(ending)], ending]))
        found = figures.of_video(measurement.finish() | {"cost": {}, "prompt": case.prompt})
        broken = words != "nothing"
        assert (found["ending"], found["ended_badly"]) == (not broken, broken), words


def test_a_turning_prompt_changes_in_one_respect_and_says_so_in_words() -> None:
    found = cases.turning(36, seed=3)
    changed = [case.turn.changed for case in found if case.turn]
    for first in range(0, 36, 6):
        group = sorted(changed[first : first + 6])
        if "fast" not in group:  # what stays in place has no speed to change
            group[group.index("motion")] = "fast"
        assert sorted(group) == sorted(cases.CHANGING)
    assert changed.count("fast") >= 2
    for case in found:
        assert case.turn is not None
        before, after = oracle.parse_prompt(case.prompt), oracle.parse_prompt(case.turn.prompt)
        assert (before, after) == (case.attributes, case.turn.attributes)
        differing = [n for n in cases.CHANGING if getattr(before, n) != getattr(after, n)]
        assert differing == [case.turn.changed]


@pytest.mark.parametrize("obeyed", [True, False])
def test_a_true_scene_that_turns_with_its_prompt_is_seen_to_and_one_that_does_not_is_caught(
    tmp_path: Path, obeyed: bool
) -> None:
    model, frames = load_model("builtin"), 12 * scenes.FPS
    verdicts = []
    for number, case in enumerate(cases.turning(6, seed=5)):
        job = Job("progressive", "progressive", "builtin", case, number, 12, number, stills=False)
        bench = Bench("builtin", "cpu", tmp_path, 10)
        turn_latent = bench.wanted(job)[0].turn_latent
        assert turn_latent is not None
        turn = model.geometry.frames_for_latents(turn_latent)
        assert abs(turn / scenes.FPS - 6) < 0.5
        assert bench.turning(job) == (
            turn - 3 * 8,
            turn + 2 * 8,
        )  # three chunks in flight before it, two behind
        measurement = Measurement(bench, job, model, frames)
        for attributes, first, last in ((case.attributes, 0, turn), (case.turn.attributes, turn, frames)):  # type: ignore[union-attr]
            shown = attributes if obeyed else case.attributes
            assert shown is not None
            scene = scenes.sample_scenes([shown], np.random.default_rng(number))
            measurement.take(oracle.to_uint8(scenes.render(scene, torch.arange(first, last), 64)[0]))
        video = measurement.finish()
        assert video["segments"][1]["oracle"] is None  # neither the one nor the other
        verdicts.append(video | {"turn": {"changed": case.turn.changed}})  # type: ignore[union-attr]
    found = figures.turns(verdicts)
    assert list(found) == [*sorted(cases.CHANGING), "any"]
    assert [found["any"][name]["mean"] for name in ("before", "changed", "after")] == [1, obeyed, obeyed]


def test_videos_whose_prompt_turns_are_made_and_reported_apart(tiny_folder: Path, tmp_path: Path) -> None:
    ordinary = VideoSet(2, 1, ("progressive",))
    turning = VideoSet(8, 2, ("progressive",), turns=True)
    plan = Plan((ordinary, turning), segment_seconds=2).checked()
    found = study.run(plan, model=str(tiny_folder), output=tmp_path, say=quiet)
    assert list(found["summary"]) == ["2"]
    *changed, _ = found["turns"]
    assert changed == sorted(
        case.turn.changed for case in cases.turning(2, 0, cases.world_of(str(tiny_folder))) if case.turn
    )
    assert [shares["after"]["prompts"] for shares in found["turns"].values()] == [1, 1, 2]
    report.write(tmp_path / "results.json", tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "## A prompt that changes" in text
    assert "](turning.jpg)" in text
    assert (tmp_path / "turning.jpg").is_file()

    short = replace(plan, sets=(ordinary, replace(turning, seconds=4)))
    with pytest.raises(EvaluationError, match="too short"):
        study.run(short, model=str(tiny_folder), output=tmp_path / "short", say=quiet)


def test_a_prompt_that_the_oracle_cannot_judge_is_measured_without_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    prompts = [Case("a cat in the rain", "rich background", None)]
    found = study.run(
        Plan((VideoSet(2, 1, ("rendered", "abrupt-ends")),), segment_seconds=2),
        model=str(tiny_folder),
        output=tmp_path,
        prompts=prompts,
        say=quiet,
    )
    (video,) = found["videos"]  # and no true scene
    assert video["class"] == "rich background"
    assert video["segments"][0]["oracle"] is None
    assert "follows" not in found["summary"]["2"]["rows"]["abrupt-ends"]["figures"]


@pytest.mark.parametrize("name", [path.stem for path in study.CONFIGS.glob("*.toml")])
def test_every_plan_can_be_read(name: str) -> None:
    assert Plan.read(name).sets


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed = 0", "sets"),
        ("sets = []", "no sets"),
        ("[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['magic']", "choose from"),
        ("[[sets]]\nseconds = 2\nprompts = 0\nmethods = ['progressive']", "needs"),
        ("[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['progressive']\nspeed = 1", "speed"),
        ("[sets]\nseconds = 2", r"sets must be \[\[sets\]\] tables"),
        (
            "sed = 0\n[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['rendered']",
            r"\[plan\] has unknown keys: sed$",
        ),
        ("[[sets]]\nseconds = 2\nprompts = 1", "'methods' is missing"),
        ("[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['reference']", "choose from"),
        (
            "[[sets]]\nseconds = 9\nprompts = 1\nmethods = ['progressive']\nturns = true",
            "do not turn",
        ),
        (
            "[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['progressive']\n"
            "[[sets]]\nseconds = 9\nprompts = 1\nmethods = ['no-chunks']\nturns = true",
            "only progressive follows",
        ),
        ("segment_seconds = 60\n[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['progressive']", "2 to 10"),
        ("[[sets]]\nseconds = 2\nprompts = 1\nmethods = ['rendered', 'rendered']", "names a method twice"),
        ("[[sets]", "wrong.toml"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        Plan.read(str(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seconds = '60'", "seconds must be a number, got '60'"),
        ("seconds = inf", "seconds must be a number, got inf"),
        ("prompts = 1.5", "prompts must be a whole number, got 1.5"),
        ("prompts = true", "prompts must be a whole number, got True"),
        ("group_seconds = 'ten'", "group_seconds must be a number"),
        ("turns = 1", "turns must be true or false, got 1"),
        ("methods = 3", "not iterable"),
        ("methods = [['progressive']]", "choose from"),
        ("seed = -1", "seed must be 0 to"),
        ("seed = 'a'", "seed must be a whole number"),
        ("segment_seconds = '10'", "segment_seconds must be a number, got '10'"),
        ("sampler = 3", "sampler must be a table"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(tmp_path: Path, setting: str, message: str) -> None:
    name, path = setting.partition(" = ")[0], tmp_path / "wrong.toml"
    head = [setting] if name in ("seed", "segment_seconds", "sampler") else []
    table = {"seconds": "2", "prompts": "1", "methods": "['progressive']"}
    table |= {} if head else {name: setting.partition(" = ")[2]}
    path.write_text("\n".join([*head, "[[sets]]", *(f"{key} = {value}" for key, value in table.items())]))
    with pytest.raises(EvaluationError, match=message):
        Plan.read(str(path))


def test_a_model_that_the_true_scenes_do_not_fit_is_evaluated_without_them(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slow"
    shutil.copytree(tiny_folder, folder)
    serving = json.loads((folder / "longtake.json").read_text())
    (folder / "longtake.json").write_text(json.dumps(serving | {"fps": 8}))
    plan = Plan(
        (VideoSet(2, 2, ("rendered", "reconstructed", "progressive")), VideoSet(3, 1, ("rendered",))),
        segment_seconds=2,
    )
    lines: list[str] = []
    found = study.run(plan, model=str(folder), output=tmp_path / "found", say=lines.append)
    assert [video["row"] for video in found["videos"]] == ["progressive"] * 2
    assert len([said for said in lines if "true scenes" in said]) == 1
    report.write(tmp_path / "found" / "results.json", tmp_path / "report.md")
    with pytest.raises(EvaluationError, match="no videos that can be made"):
        study.run(plan.only(("rendered",)), model=str(folder), output=tmp_path / "none", say=quiet)


@pytest.mark.parametrize(
    ("method", "words"),
    [("magic", "no such method"), ("no-chunks", "no set of the plan has `variants = true`")],
)
def test_a_variant_needs_a_method_and_a_set(
    tiny_folder: Path, tmp_path: Path, method: str, words: str
) -> None:
    with pytest.raises(EvaluationError, match=words):
        study.run(
            TWO, model=str(tiny_folder), output=tmp_path, variants={method: str(tiny_folder)}, say=quiet
        )


def test_what_variants_are_compared_with_is_said(smoke: Any) -> None:
    text = report.text(smoke, "")
    assert "compared with the model's own weights, as there is no variant of the progressive sampler" in text
    beside = smoke | {"variants": smoke["variants"] | {"progressive": "0"}}
    assert "compared with `progressive (trained)`, trained as long" in report.text(beside, "")


@pytest.fixture
def longtake(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(["evaluate", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_goes_on_and_reports(
    longtake: Callable[..., tuple[int, str, str]], smoke_folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(smoke_folder, output)
    code, out, err = longtake(
        "--config",
        "smoke",
        "--model",
        str(tiny_folder),
        "--output",
        str(output),
        "--methods",
        "rendered, no-chunks",
    )
    assert (code, out.strip()) == (0, str(output / "report.md")), err
    assert "3 videos, 3 of them made before" in err
    report = (output / "report.md").read_text()
    assert "| no-chunks |" in report
    assert "figures-2s.png" in report
    assert (output / "sheet-2s.jpg").is_file()

    code, out, err = longtake("report", str(output / "results.json"), "--markdown", str(tmp_path / "r.md"))
    assert code == 0, err
    assert (tmp_path / "r.md").read_text() == report.replace("](", "](out/")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nothing"], "neither a file nor one of"),
        (["--methods", "magic"], "no method magic"),
        (["--methods", "graded", "--config", "card"], "none of the methods graded"),
        (["--device", "foo"], "--device foo: choose cpu or cuda"),
        (["--device", "cuda:99"], "finds no such GPU here"),
        (["--model", "/nowhere/at/all"], "neither a folder nor a hub id"),
        (["--variant", "no-chunks=/nowhere"], "a folder that exists"),
        (["--prompts", "/nowhere.toml"], "no list of"),
        (["--budget-minutes", "0"], "above 0"),
        (["report"], "which JSON"),
        (["report", "/nowhere.json"], "no results of an evaluation"),
        (["--vbench", "a", "--vbench-long", "b"], "not allowed with"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    longtake: Callable[..., tuple[int, str, str]], arguments: list[str], words: str, tmp_path: Path
) -> None:
    code, _, err = longtake(*arguments, "--output", str(tmp_path))
    assert code in (1, 2)
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_rendering_matches_the_frame_rate_of_the_scenes() -> None:
    assert load_model("builtin").geometry.fps == scenes.FPS


def test_a_folder_that_cannot_be_written_is_refused_before_any_video(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match=r"file/out: nothing can be written there: Not a directory"):
        study.run(TWO, model="builtin", output=tmp_path / "file" / "out", say=quiet)
