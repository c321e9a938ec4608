"""Scenes that turn into other scenes, for training: a prompt that changes, and the slips that a sampler must mend.

A window that slides over its own output meets pasts that no plain scene has: an object that is half gone, or has begun
as the wrong shape. Trained on plain scenes alone, a network carries such a past on for ever. Here a scene is one thing
until its turn and what its caption says after it, so that the network learns to lead any past to its caption. A past
is another scene of the set (what a changed prompt leaves behind), or the same one faint, out of shape, too large,
halting, or with a night that has stopped falling.

The object stays where it is when its motion changes: the motion after the turn is fitted to the place, and where it
can be to the direction, in which the one before is met. An object that is wholly gone has no place: it comes back by
the `entrance`, always the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from worker.training import backdrops, scenes
from worker.training.backdrops import BACKDROPS
from worker.training.scenes import MOTIONS, SHAPES, SceneAttributes, Scenes, Track, World

PASTS = {
    "background": 0.16,
    "second": 0.08,
    "color": 0.08,
    "shape": 0.14,
    "motion": 0.32,
    "fast": 0.06,
    "everything": 0.04,
    "faint": 0.08,
    "gone": 0.08,
    "malformed": 0.08,
    "rounded": 0.06,
    "twisted": 0.08,
    "swollen": 0.16,
    "halting": 0.12,
}
"""What a scene was before its turn, weighted by how often: another scene that differs in this, or a slip of this kind:
half or wholly gone, with something of another shape, a mere disc, or with something of itself at another angle (a cross
with five arms), grown out of its size and shape, as crosses do that a sampler loses, or slower than it should be, and
pulsing less."""

_SLIPS = ("faint", "gone", "malformed", "rounded", "twisted", "swollen", "halting", "stalled")

HALTING_PULSES = 0.35
"""Share of the pasts of what pulses that halt in any case: of all motions this is the one that a sampler lets die down.

With those of the other 65 % that `PASTS` lets halt, 40 %, where no night falls.
"""

ROUNDED_SPINS = 0.2
"""Share of the pasts of what spins that are rounded in any case: a sampler that has lost all corners finds none again,
because nothing tells their angle. They come back upright."""

STALLED_NIGHTFALLS = 0.35
"""Share of the pasts of nightfalls in which the night alone falls more slowly than it should, or has stopped."""

_CONFUSED = {"bounce": "orbit", "orbit": "bounce"}
"""Motions that are taken for each other: half of the pasts that differ in motion."""

_PERIODS = {"circle": 2 * math.pi, "square": math.pi / 2, "triangle": 2 * math.pi / 3, "cross": math.pi / 2}
"""Radians after which a shape looks the same."""


@dataclass(frozen=True)
class Turns:
    """A batch of B scenes that turn; lengths of time are in frames, tensors are (B,)."""

    before: Scenes
    after: Scenes
    begin: Tensor  # frame at which the turn begins
    length: Tensor  # frames that it takes
    visible: Tensor  # opacity of the object before the turn, 0..1
    shape_share: Tensor  # how much of the shape after the turn is there before it, 0..1
    scale: Tensor  # size before the turn, as a fraction of the scene's
    twist: Tensor  # angle by which the shape before the turn is off, radians
    pace: Tensor  # how fast time goes for the scene before the turn, as a fraction
    swing: Tensor  # how much it pulses, as a fraction
    dusk_pace: Tensor  # how fast its night falls, as a fraction
    start: Tensor  # frame 0 of both scenes

    def __len__(self) -> int:
        return len(self.before)

    def earlier(self, frames: Tensor, pace: Tensor | None = None) -> Tensor:
        """Frames of the scene before the turn at the given ones, (T,) or (B, T), by this pace or its own: (B, T)."""
        turn = self.begin[:, None]
        return turn + (frames - turn) * (self.pace if pace is None else pace)[:, None]

    def tracks(self, frames: Tensor) -> tuple[Track, Track]:
        """Where the objects of both scenes are at the given frames, (T,) or (B, T): (B, T)."""
        start = self.start[:, None]
        before = scenes.track(self.before, self.earlier(frames) - start)
        rest = scenes.REST * self.before.radius[:, None]
        pulses = (self.before.motion == MOTIONS.index("pulse"))[:, None]
        radius = torch.where(pulses, torch.lerp(rest, before.radius, self.swing[:, None]), before.radius)
        return replace(before, radius=radius), scenes.track(self.after, frames - start)

    def done(self, frames: Tensor) -> Tensor:
        """How far each scene has turned at the given frames (T,): (B, T), from 0 to 1 without a kink."""
        part = ((frames[None] - self.begin[:, None]) / self.length[:, None]).clamp(0, 1)
        return part * part * (3 - 2 * part)


def _mixed(choose: Tensor, one: Scenes, other: Scenes) -> Scenes:
    """Scenes of `one` where `choose` (B,) holds, else of `other`."""
    return Scenes(
        **{f.name: torch.where(choose, getattr(one, f.name), getattr(other, f.name)) for f in fields(Scenes)}
    )


def continued(before: Scenes, attributes: list[SceneAttributes], frame: Tensor) -> Scenes:
    """Scenes with these attributes that go on from where `before` is at `frame` (B,)."""
    indices = torch.tensor([a.indices() for a in attributes], device=before.radius.device)
    background, color, shape, motion, second_color, second_shape, fast = indices.unbind(1)
    nightfall = BACKDROPS.index("nightfall")
    falls_on = (background == nightfall) & (before.background == nightfall)
    same = replace(
        before,
        background=background,
        color=color,
        shape=shape,
        second_color=second_color,
        second_shape=second_shape,
        fast=fast,
        dusk=torch.where(falls_on, before.dusk, frame),
    )
    here, next_ = (
        Track(*(getattr(scenes.track(before, at[:, None]), f.name)[:, 0] for f in fields(Track)))
        for at in (frame, frame + 1)
    )
    seconds = frame / scenes.FPS
    orbit = scenes.ring(replace(same, motion=motion))[1]
    margin = before.radius + 1 / 64
    free = 1 - 2 * margin
    way = scenes.speed(same) * seconds  # widths
    along_x, along_y = next_.x - here.x, next_.y - here.y

    def direction(value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(value.abs() > 1e-4, value.sign(), otherwise)

    def is_(*names: str) -> Tensor:
        return torch.stack([motion == MOTIONS.index(name) for name in names]).any(0)

    sign_x = torch.where(is_("bounce"), direction(along_x, before.sign_x), before.sign_x)
    sign_y = torch.where(is_("bounce"), direction(along_y, before.sign_y), before.sign_y)
    inner_x, inner_y = ((p - margin).clamp(min=0).minimum(free) for p in (here.x, here.y))
    bounced_x = (inner_x - sign_x * way * torch.cos(before.heading)) / (2 * free)
    bounced_y = (inner_y - sign_y * way * torch.sin(before.heading)) / (2 * free)
    drift = torch.where(is_("left"), here.x + way, here.x - way)
    place_x = torch.where(is_("bounce"), bounced_x, torch.where(is_("left", "right"), drift, inner_x / free))
    place_y = torch.where(is_("bounce"), bounced_y, inner_y / free)
    phase = torch.where(
        is_("orbit"),
        torch.atan2(here.y - 0.5, here.x - 0.5) - way / orbit,
        torch.where(is_("spin"), -before.rate * seconds, before.phase),
    )
    moving = torch.where(is_("left", "right", "bounce"), torch.remainder(place_x, 1), place_x)
    other = replace(
        same,
        motion=motion,
        sign_x=sign_x,
        sign_y=sign_y,
        phase=phase,
        place_x=moving,
        place_y=torch.where(is_("bounce"), torch.remainder(place_y, 1), place_y),
    )
    as_before = (motion == before.motion) & (fast == before.fast) & (orbit == scenes.ring(before)[1])
    return _mixed(as_before, same, other)


def entrance(plain: Scenes) -> Scenes:
    """The same scenes with frame 0 as an object comes out of nothing, in the one way that a network can settle on.

    In the center and upright, or on top of its orbit; what bounces sets out to the right and down.
    """
    bounces = plain.motion == MOTIONS.index("bounce")
    place = torch.where(bounces, 0.25, 0.5)  # a bounce has places on the way there and back
    orbits = plain.motion == MOTIONS.index("orbit")
    room = scenes.make_room(replace(plain, place_y=place))
    return replace(
        plain,
        place_x=place,
        place_y=torch.where(plain.second_shape >= 0, room.place_y, place),
        sign_x=torch.ones_like(place),
        sign_y=torch.ones_like(place),
        phase=torch.where(orbits, -math.pi / 2, 0.0),
    )


def _halting(plain: Scenes, frame: Tensor, pace: Tensor, swing: Tensor) -> Scenes:
    """The same scenes, so that what has all but ceased to pulse at `frame` (B,) is about to grow: nothing tells."""
    pulses = plain.motion == MOTIONS.index("pulse")
    way = plain.rate * frame / scenes.FPS
    now = (
        torch.remainder(plain.phase + way + math.pi / 2, 2 * math.pi) - math.pi / 2
    )  # -pi/2 to pi/2: it grows
    now = torch.where((pace < 0.25) & (now > math.pi / 2), math.pi - now, now)
    now = torch.where(swing < 0.3, 0.0, now)
    return replace(plain, phase=torch.where(pulses, now - way, plain.phase))


def _upright(plain: Scenes, frame: Tensor) -> Scenes:
    """The same scenes, so that what spins is upright at `frame` (B,)."""
    spins = plain.motion == MOTIONS.index("spin")
    return replace(plain, phase=torch.where(spins, -plain.rate * frame / scenes.FPS, plain.phase))


def _past(attributes: SceneAttributes, kind: str, rng: np.random.Generator, world: World) -> SceneAttributes:
    """Another scene that training may show, which differs from this one in `kind` alone, where there is one.

    The second object and the speed stay, where they can.
    """
    if kind == "fast":
        if attributes.motion not in scenes.IN_PLACE:
            return replace(attributes, fast=not attributes.fast)
        kind = "motion"
    if kind == "second":
        other = attributes
        while other.second == attributes.second:
            alone = [replace(attributes, second=None)]
            (other,) = scenes.accompanied(alone, rng, 0.5 if attributes.second else 1)
        return other
    names = ("background", "color", "shape", "motion")

    def differs(other: SceneAttributes) -> list[str]:
        return [name for name in names if getattr(other, name) != getattr(attributes, name)]

    others = [a for a in world.pool() if differs(a) and kind in ("everything", *differs(a))]
    pool = [a for a in others if differs(a) == [kind]] or others
    confused = [a for a in pool if a.motion == _CONFUSED.get(attributes.motion)]
    if kind == "motion" and confused and rng.random() < 0.5:
        pool = confused
    other = pool[int(rng.integers(len(pool)))]
    if kind == "everything":
        (other,) = world.dressed([other], rng)
        return other
    return replace(
        other,
        second=attributes.second if scenes.fits(attributes.second, other) else None,
        fast=attributes.fast and other.motion not in scenes.IN_PLACE,
    )


def sample(
    attributes: list[SceneAttributes],
    begin: Tensor,
    rng: np.random.Generator,
    device: torch.device | str = "cpu",
    world: World = scenes.LIVELY,
) -> Turns:
    """Scenes of a world that become `attributes` in a turn that begins at frame `begin` (B,). Drawn with numpy."""
    count = len(attributes)
    weights = {kind: weight for kind, weight in PASTS.items() if kind not in world.lacking}
    kinds = rng.choice(list(weights), count, p=np.array(list(weights.values())) / sum(weights.values()))
    motions, any_case = np.array([a.motion for a in attributes]), rng.random(count)
    kinds = np.where((motions == "pulse") & (any_case < HALTING_PULSES), "halting", kinds)
    kinds = np.where((motions == "spin") & (any_case < ROUNDED_SPINS), "rounded", kinds)
    falls = np.array([a.background == "nightfall" for a in attributes])
    kinds = np.where(falls & (any_case > 1 - STALLED_NIGHTFALLS), "stalled", kinds)
    faint, gone, malformed, rounded, twisted, swollen, halting, stalled = (kinds == kind for kind in _SLIPS)
    bent = malformed | rounded | twisted | swollen
    slip = faint | bent | halting | stalled
    pasts = [
        a if kind in _SLIPS else _past(a, str(kind), rng, world)
        for a, kind in zip(attributes, kinds, strict=True)
    ]
    begin = begin.to(device, torch.float32)
    in_place = np.isin(motions, scenes.IN_PLACE)

    def drawn(low: float, high: float, where: np.ndarray, otherwise: float) -> np.ndarray:
        return np.where(where, rng.uniform(low, high, count), otherwise)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float().to(device)

    # What moves does not stop altogether: nothing would tell where to.
    pace = tensor(np.maximum(drawn(0, 0.8, halting, 1.0), np.where(in_place, 0, 0.3)))
    swing = tensor(drawn(0, 0.9, halting, 1.0))
    before = scenes.sample_scenes(pasts, rng, device, begin)
    before = _mixed(torch.from_numpy(halting).to(device), _halting(before, begin, pace, swing), before)
    before = _mixed(torch.from_numpy(rounded).to(device), _upright(before, begin), before)
    appears = np.array(
        [a.second is not None and past.second is None for past, a in zip(pasts, attributes, strict=True)]
    )
    before = _mixed(torch.from_numpy(appears).to(device), scenes.make_room(before), before)
    after = continued(before, attributes, begin)
    enters = torch.from_numpy(gone).to(device)
    before, after = (_mixed(enters, entrance(before), scene) for scene in (before, after))
    wrong = np.where(malformed | swollen, rng.integers(np.where(swollen, 0, 1), len(SHAPES)), 0)
    deformed = (before.shape + torch.from_numpy(wrong).to(device)) % len(SHAPES)
    deformed = torch.where(torch.from_numpy(rounded).to(device), SHAPES.index("circle"), deformed)
    periods = np.array([_PERIODS[name] for name in SHAPES])[before.shape.cpu().numpy()]
    return Turns(
        before=replace(before, shape=deformed),
        after=after,
        begin=begin,
        length=tensor(drawn(4, 8, gone, 0.0) + drawn(4, 16, slip, 0.0) + drawn(10, 22, ~(gone | slip), 0.0)),
        visible=tensor(
            np.minimum(np.minimum(drawn(0, 0.7, faint, 1.0), drawn(0.6, 1.0, bent, 1.0)), ~gone),
        ),
        shape_share=tensor(drawn(0, 0.8, bent & ~rounded, 0.0)),
        scale=tensor(np.where(swollen, rng.uniform(1.1, 2.4, count), drawn(0.65, 1.1, faint | bent, 1.0))),
        twist=tensor(drawn(0.2, 0.8, twisted | swollen, 0.0) * periods),
        pace=pace,
        swing=swing,
        dusk_pace=torch.minimum(pace, tensor(drawn(0, 0.6, stalled, 1.0))),
        start=torch.where(enters, begin, 0.0),
    )


def _angles(turns: Turns, one: Track, other: Track) -> tuple[Tensor, Tensor]:
    """The angles of both tracks, less the whole periods that they have at the turn, unless they turn alike."""
    periods = torch.tensor([_PERIODS[name] for name in SHAPES], device=turns.begin.device)

    def reduced(scene: Scenes, track: Track, at_turn: Track) -> Tensor:
        period = periods[scene.shape][:, None]
        return track.angle - torch.round(at_turn.angle / period) * period

    alike = (turns.before.motion == turns.after.motion)[:, None]
    one_then, other_then = turns.tracks(turns.begin[:, None])
    return (
        torch.where(alike, one.angle, reduced(turns.before, one, one_then)),
        torch.where(alike, other.angle, reduced(turns.after, other, other_then)),
    )


def _between(turns: Turns, one: Track, other: Track, done: Tensor, wraps: Tensor) -> Tensor:
    """Where the objects are from left to right, (B, T): on the way from one track to the other.

    Where the scene `wraps`, the way is the one round the torus that is shortest in the middle of the turn.
    """
    before, after = turns.tracks((turns.begin + turns.length / 2)[:, None])
    way = scenes.shortest(after.x - before.x)
    across = other.x - one.x
    around = torch.remainder(one.x + done * (way + scenes.shortest(across - way)), 1)
    return torch.where(wraps[:, None], around, one.x + done * across)


def render(turns: Turns, frames: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """As `scenes.render`: pixels (B, 3, T, size, size) in -1..1 and the coverage (B, T, size, size)."""
    done = turns.done(frames)
    one, other = turns.tracks(frames)
    wraps = scenes.wraps(turns.before) | scenes.wraps(turns.after)
    angle, other_angle = _angles(turns, one, other)
    where = Track(
        x=_between(turns, one, other, done, wraps),
        y=torch.lerp(one.y, other.y, done),
        radius=torch.lerp(one.radius * turns.scale[:, None], other.radius, done),
        angle=torch.lerp(angle, other_angle, done),
    )
    dx, dy = scenes.offsets(where, wraps[:, None] & (done < 1) | scenes.wraps(turns.after)[:, None], size)
    pixel = (..., None, None)
    radius = where.radius[pixel]

    twisted_x, twisted_y = scenes.turned(dx, dy, turns.twist[:, None, None, None])
    before, after = (scene.shape[:, None, None, None] for scene in (turns.before, turns.after))
    share = 1 - (1 - done) * (1 - turns.shape_share[:, None])
    edge = torch.lerp(
        scenes.signed_distance(twisted_x, twisted_y, radius, before),
        scenes.signed_distance(dx, dy, radius, after),
        share[pixel],
    )
    visible = torch.lerp(turns.visible[:, None].expand_as(done), torch.ones_like(done), done)
    alpha = backdrops.covered(edge, size) * visible[pixel]

    start, end = (scenes.inks(scene.color) for scene in (turns.before, turns.after))
    ink = torch.lerp(start, end, done[:, None][pixel])  # (B, 3, T, 1, 1)
    first, first_cover = scenes.scenery(turns.before, turns.earlier(frames, turns.dusk_pace), size)
    last, last_cover = scenes.scenery(turns.after, frames, size)
    paper = torch.lerp(first, last, done[:, None][pixel])
    second = torch.lerp(first_cover, last_cover, done[pixel])
    return (paper + (ink - paper) * alpha[:, None]) * 2 - 1, torch.maximum(alpha, second)
