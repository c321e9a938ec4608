"""What is asked of a model in an evaluation: prompts, what they say, and how complex their scenes are."""

from __future__ import annotations

import tomllib
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from worker.evaluation import oracle
from worker.models.registry import describe
from worker.training import scenes
from worker.training.backdrops import LANDSCAPES
from worker.training.run import ConfigError
from worker.training.text import vocabulary, vocabulary_of

SCENE_CLASSES = (
    "one object in place",
    "one object moving",
    "several objects",
    "rich background",
    "fast motion",
)
"""Classes of complexity that a report has a row for, shown or not."""


EVENLY = 1.2207440846 ** -np.arange(1.0, 4.0)
"""Steps of the R3 sequence: powers of the root of ``x**4 = x + 1``."""


class EvaluationError(ValueError):
    """An evaluation that cannot be made as asked; one line for a person."""


CHANGING = ("background", "color", "shape", "motion", "second", "fast")
"""What a prompt may change half-way, one at a time; a second object appears, disappears or becomes another, and what is
fast becomes slow, or the other way."""


@dataclass(frozen=True)
class Turn:
    """The prompt that takes over in the middle of a video, and the attribute in which it differs from the first."""

    prompt: str
    attributes: scenes.SceneAttributes
    changed: str


@dataclass(frozen=True)
class Case:
    """One prompt. `attributes` is what the oracle holds the video against; None leaves it to the other figures."""

    prompt: str
    scene_class: str
    attributes: scenes.SceneAttributes | None
    turn: Turn | None = None


def _described(prompt: str, attributes: scenes.SceneAttributes) -> Case:
    if attributes.fast:
        scene_class = "fast motion"
    elif attributes.second:
        scene_class = "several objects"
    elif attributes.background in LANDSCAPES:
        scene_class = "rich background"
    else:
        scene_class = "one object in place" if attributes.motion in scenes.IN_PLACE else "one object moving"
    return Case(prompt, scene_class, attributes)


def world_of(spec: str) -> scenes.World:
    """The richest scenes that a model has the words for; the plain ones where its words are not those of the scenes.

    Raises EvaluationError where its tokenizer cannot be read.
    """
    file = Path(describe(spec).source) / "tokenizer" / "tokenizer.json"
    try:
        known = set(vocabulary_of(file)) if file.is_file() else set()
    except ConfigError as error:
        raise EvaluationError(str(error)) from error
    spoken = [world for world in scenes.WORLDS.values() if known.issuperset(vocabulary(world))]
    return spoken[-1] if spoken else scenes.PLAIN


def held_out(count: int, seed: int, world: scenes.World = scenes.LIVELY) -> list[Case]:
    """`count` captions of combinations of a world that training never showed, motions in turn.

    As many as in training have a landscape, a second object or are fast. These are dealt evenly, by the R3 sequence
    (Roberts 2018) over the rounds of motions and by equal steps within a round: few prompts have some of each, and
    every motion is seen with and without them. The first ones are the same however many are asked for.
    """
    rng = np.random.default_rng(seed)
    pool = world.pool(held_out=True)
    rng.shuffle(pool)
    start = rng.random(len(EVENLY))
    queues = {
        (motion, landscape): deque(
            a for a in pool if (a.motion, a.background in LANDSCAPES) == (motion, landscape)
        )
        for motion in scenes.MOTIONS
        for landscape in (False, True)
    }
    cases = []
    for number in range(count):
        turn, place = divmod(number, len(scenes.MOTIONS))
        motion = scenes.MOTIONS[place]
        landscape, second, fast = (start + turn * EVENLY + place / len(scenes.MOTIONS)) % 1
        open_country = len(queues[motion, True])
        queue = queues[motion, bool(landscape < open_country / (open_country + len(queues[motion, False])))]
        own = np.random.default_rng((seed, number))
        dress = replace(world, second=float(second < world.second), fast=float(fast < world.fast))
        (attributes,) = dress.dressed([queue[0]], own)
        queue.rotate(-1)
        cases.append(_described(scenes.caption(attributes, own), attributes))
    return cases


def _others(
    before: scenes.SceneAttributes, changed: str, rng: np.random.Generator, world: scenes.World
) -> list[scenes.SceneAttributes]:
    """Scenes that may be rendered and differ from this one in one attribute."""
    if changed == "second":
        alone = replace(before, second=None)
        among = [*([alone] if before.second else []), *scenes.accompanied([alone] * 2, rng, 1)]
    elif changed == "fast":
        among = [replace(before, fast=not before.fast)]
    else:
        among = [
            replace(a, second=before.second, fast=before.fast)
            for a in scenes.all_attributes()
            if world.knows(a)
            and scenes.fits(before.second, a)
            and not (before.fast and a.motion in scenes.IN_PLACE)
        ]
    return [a for a in among if [n for n in CHANGING if getattr(a, n) != getattr(before, n)] == [changed]]


def turning(count: int, seed: int, world: scenes.World = scenes.LIVELY) -> list[Case]:
    """`count` held-out cases whose prompt changes half-way in one attribute, those of CHANGING in turns.

    Each turn has an order of its own, or some attributes would meet the same motions again and again. What it changes
    to is any scene that may be rendered, held out or not. What stays in place gets another motion in place of a speed.
    """
    rng = np.random.default_rng((seed, 1))
    found, changing = [], [name for name in CHANGING if name not in world.lacking]
    for number, case in enumerate(held_out(count, seed, world)):
        if number % len(changing) == 0:
            order = rng.permutation(changing).tolist()
        changed = order[number % len(changing)]
        assert case.attributes is not None
        if changed == "fast" and case.attributes.motion in scenes.IN_PLACE:
            changed = "motion"
        others = _others(case.attributes, changed, rng, world)
        after = others[int(rng.integers(len(others)))]
        found.append(replace(case, turn=Turn(scenes.caption(after, rng), after, changed)))
    return found


def read(path: Path) -> list[Case]:
    """Prompts of a TOML file: `[[prompts]]` tables with `text` and `class`, one of SCENE_CLASSES.

    A prompt in the words of the procedural scenes is judged by the oracle. Raises EvaluationError.
    """
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["prompts"]
        given = [(str(row["text"]), str(row["class"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: no list of [[prompts]] with text and class: {error}") from error
    for text, scene_class in given:
        if scene_class not in SCENE_CLASSES:
            raise EvaluationError(f"{path}: class {scene_class!r} is none of {', '.join(SCENE_CLASSES)}")
        if not text.strip():
            raise EvaluationError(f"{path}: a prompt is empty")
    if not given:
        raise EvaluationError(f"{path}: no prompts")
    return [Case(text, scene_class, oracle.parse_prompt(text)) for text, scene_class in given]
