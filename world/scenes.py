"""Drawn scenes with known truth: one animal, one place, perhaps a sun and a tree, and a caption that says so.

`sample(seed, n)` draws the parameters of n scenes, `render(scenes)` their pictures and masks, `caption(scene, seed)` a
sentence for one of them. The same input always gives the same output, so the ideal target of an edit can be drawn:
change one field with `replace` and render again. All else in the scene (place, size, light, horizon) stays as it was.

Lengths are pixels of a 128 x 128 picture, x to the right, y down, unless a comment says otherwise. Needs torch alone.
"""

import random
from dataclasses import dataclass, fields, replace  # noqa: F401 (replace is part of this module's interface)
from functools import lru_cache

import torch
import torch.nn.functional as F

SIZE = 128

ANIMALS = ("dog", "cat")
POSES = ("standing", "sitting", "lying", "jumping")
COLOURS = ("red", "yellow", "blue", "purple", "black", "pink")
PLACES = ("meadow", "beach", "snow", "wall", "sea")
POSITIONS = ("left", "middle", "right")
SIDES = ("left", "right")
NO_SIDE = -1  # value of `sun` and `tree` where there is none

_RGB = torch.tensor([[222, 38, 40], [255, 204, 20], [36, 84, 226], [128, 48, 196], [40, 38, 44], [255, 120, 190]]) / 255


@dataclass(frozen=True)
class Scene:
    """One scene. The integer fields index the tuples above; the others are continuous, and their spans stand below.

    animal, pose, colour, place, position, facing: see ANIMALS, POSES, COLOURS, PLACES, POSITIONS, SIDES.
    sun, tree: the side they are on (SIDES), or NO_SIDE.
    dx, dy: the animal's shift in pixels. size: pixels per unit of length. horizon: shift of the horizon in pixels.
    swell: phase of the horizon's curve in radians. light: brightness.
    """

    animal: int
    pose: int
    colour: int
    place: int
    position: int
    facing: int
    sun: int
    tree: int
    dx: float
    dy: float
    size: float
    horizon: float
    swell: float
    light: float

    def __post_init__(self):
        for name, (least, names) in _INDICES.items():
            index = getattr(self, name)
            if not least <= index < len(names):
                raise ValueError(f"A scene's {name} is an index from {least} to {len(names) - 1}, not {index!r}.")


_INDICES = {  # the least index, and what it is the index of
    "animal": (0, ANIMALS),
    "pose": (0, POSES),
    "colour": (0, COLOURS),
    "place": (0, PLACES),
    "position": (0, POSITIONS),
    "facing": (0, SIDES),
    "sun": (NO_SIDE, SIDES),
    "tree": (NO_SIDE, SIDES),
}
_SPANS = {
    "dx": (-4, 4),
    "dy": (-3, 5),
    "size": (28, 32),
    "horizon": (-3, 3),
    "swell": (0, 6.283),
    "light": (0.94, 1.04),
}


def sample(seed, n):
    """`n` random scenes in a list; the same seed gives the same list. Raises ValueError for a seed below 0."""
    if seed < 0:
        raise ValueError(f"A scene's seed is an integer from 0, not {seed}.")
    rng = random.Random(int(seed))
    return [_random_scene(rng) for _ in range(n)]


def _random_scene(rng):
    chosen = {name: rng.randrange(least, len(names)) for name, (least, names) in _INDICES.items()}
    measured = {name: round(rng.uniform(low, high), 3) for name, (low, high) in _SPANS.items()}
    return Scene(**chosen, **measured)


# --- captions ---------------------------------------------------------------------------------------------------------

WORDS = {
    "animal": (("dog", "puppy", "hound"), ("cat", "kitty", "kitten")),
    "pose": (
        ("standing", "stands"),
        ("sitting", "sits", "seated"),
        ("lying", "lies", "resting"),
        ("jumping", "jumps", "leaping"),
    ),
    "colour": (
        ("red", "scarlet"),
        ("yellow", "golden"),
        ("blue",),
        ("purple", "violet"),
        ("black", "dark"),
        ("pink", "rosy"),
    ),
    "place": (
        ("on a meadow", "on the grass", "in a green field"),
        ("on a beach", "on the sand", "at the beach"),
        ("in the snow", "on snow", "in winter snow"),
        ("in front of a brick wall", "by a wall", "in front of bricks"),
        ("on the sea", "in the water", "on ocean waves"),
    ),
    "position": (
        ("on the left", "at the left"),
        ("in the middle", "in the centre", "in the center"),
        ("on the right", "at the right"),
    ),
    "facing": (("facing left", "looking left"), ("facing right", "looking right")),
}
_OTHER_WORDS = "a an the with and sun tree is of photo picture drawing under sunny beside near"


def vocabulary():
    """Every word a caption can hold, sorted: what the text side of the model has an embedding for."""
    words = set(_OTHER_WORDS.split())
    for groups in WORDS.values():
        for phrases in groups:
            words.update(" ".join(phrases).split())
    return sorted(words)


def plain_caption(scene):
    """The caption in its first form, which names everything.

    As "a red dog sitting on a beach, on the left, facing right, sun, tree".
    """
    word = {name: groups[getattr(scene, name)][0] for name, groups in WORDS.items()}
    head = f"a {word['colour']} {word['animal']} {word['pose']} {word['place']}"
    return ", ".join([head, word["position"], word["facing"], *_extras_of(scene)])


def _extras_of(scene):
    return [name for name in ("sun", "tree") if getattr(scene, name) != NO_SIDE]


def caption(scene, seed, keep=0.9):
    """A random sentence about a scene: synonyms, order and wording by `seed`.

    keep: how likely each fact is named, 0 to 1.
    """
    rng = random.Random(int(seed))
    word = {name: rng.choice(groups[getattr(scene, name)]) for name, groups in WORDS.items()}
    kept = {name: text if rng.random() < keep else "" for name, text in word.items()}
    subject = _subject(rng, kept["colour"], word["animal"])
    pose = _pose(rng, kept["pose"])
    extras = _extras(rng, scene, keep)
    place, facing = kept["place"], kept["facing"]
    clauses = [place, kept["position"], facing]
    rng.shuffle(clauses)

    order = rng.random()
    if order < 0.5:  # a red dog sitting on a beach, on the left, facing right, sun, tree
        others = [clause for clause in clauses if clause != place]
        parts = [_joined(subject, pose, place), *others, *extras]
    elif order < 0.75:  # a red dog, facing right, on the left, sitting, on a beach, sun
        parts = [subject, *rng.sample([pose, *clauses], 4), *extras]
    else:  # on a beach, on the left, with a sun, a red dog sitting, facing right
        others = [clause for clause in clauses if clause != facing]
        parts = [*others, *extras, _joined(subject, pose), facing]
    return ", ".join(filter(None, parts))


def _joined(*words):
    return " ".join(filter(None, words))


def _subject(rng, colour, animal):
    """The animal as in "a red dog", "the dog" or "red dog", sometimes in "a photo of"."""
    subject = _joined(rng.choice(("a", "the", "a", "")), colour, animal)
    if rng.random() < 0.15:
        subject = rng.choice(("a photo of", "a picture of", "a drawing of")) + " " + subject
    return subject


def _pose(rng, pose):
    """A pose as it is, or with "is" before it where that is English."""
    takes_is = pose and not pose.endswith("s")
    return "is " + pose if takes_is and rng.random() < 0.2 else pose


def _extras(rng, scene, keep):
    """Sun and tree as clauses of their own, or together, as in "with a sun and the tree"."""
    extras = [name for name in _extras_of(scene) if rng.random() < keep]
    rng.shuffle(extras)
    if extras and rng.random() < 0.4:
        named = [rng.choice(("a ", "the ")) + name for name in extras]
        extras = ["with " + " and ".join(named)]
    return extras


# --- animals ----------------------------------------------------------------------------------------------------------
# A glyph is made of strokes in its own units, facing right, y up, feet at 0. A stroke is a chain of tapered capsules,
# ((x, y, radius), ...). Layers: far limbs, body, ear (a darker patch on the body), eye, nose.
# A glyph's entry: its head, the head's centre, and the strokes that its layers have beside the head's.

_DOG_HEAD = {  # about the head's centre
    "body": [((0, 0, 0.25), (0.02, 0.02, 0.25)), ((0.08, -0.06, 0.15), (0.36, -0.12, 0.11))],
    "ear": [((-0.13, 0.12, 0.09), (-0.24, -0.20, 0.12))],
    "eye": [((0.11, 0.08, 0.045),)],
    "nose": [((0.43, -0.07, 0.065),)],
}
_CAT_HEAD = {
    "body": [
        ((-0.02, 0, 0.25), (0.06, -0.02, 0.25)),
        ((0.14, -0.09, 0.15), (0.20, -0.10, 0.13)),
        ((-0.15, 0.12, 0.12), (-0.22, 0.44, 0.015)),
        ((0.13, 0.14, 0.12), (0.22, 0.44, 0.015)),
    ],
    "ear": [((-0.16, 0.16, 0.05), (-0.20, 0.33, 0.01))],
    "eye": [((0.12, 0.05, 0.05),)],
    "nose": [((0.33, -0.06, 0.04),)],
}
_GLYPHS = {
    ("dog", "standing"): (
        _DOG_HEAD,
        (0.84, 1.34),
        {
            "far": [
                ((0.26, 0.7, 0.12), (0.24, 0.3, 0.09), (0.28, 0.08, 0.08)),
                ((-0.40, 0.7, 0.14), (-0.46, 0.36, 0.09), (-0.40, 0.08, 0.08)),
            ],
            "body": [
                ((-0.55, 0.82, 0.27), (0.42, 0.84, 0.31)),
                ((0.46, 0.95, 0.2), (0.78, 1.28, 0.17)),
                ((0.46, 0.72, 0.14), (0.46, 0.3, 0.1), (0.50, 0.08, 0.09)),
                ((-0.58, 0.75, 0.22), (-0.68, 0.38, 0.1), (-0.62, 0.08, 0.09)),
                ((-0.76, 0.98, 0.08), (-0.98, 1.2, 0.07), (-1.05, 1.45, 0.05)),
            ],
        },
    ),
    ("dog", "sitting"): (
        _DOG_HEAD,
        (0.42, 1.56),
        {
            "far": [((0.10, 0.8, 0.1), (0.16, 0.08, 0.08))],
            "body": [
                ((-0.36, 0.36, 0.33), (0.12, 0.98, 0.28)),
                ((0.14, 1.08, 0.22), (0.36, 1.46, 0.17)),
                ((-0.30, 0.09, 0.09), (0.02, 0.08, 0.08)),
                ((0.28, 0.92, 0.13), (0.36, 0.4, 0.1), (0.36, 0.08, 0.09), (0.44, 0.07, 0.07)),
                ((-0.62, 0.16, 0.09), (-0.9, 0.16, 0.07), (-1.08, 0.36, 0.05)),
            ],
        },
    ),
    ("dog", "lying"): (
        _DOG_HEAD,
        (0.76, 0.74),
        {
            "far": [((0.40, 0.16, 0.1), (0.92, 0.1, 0.08))],
            "body": [
                ((-0.62, 0.30, 0.29), (0.40, 0.32, 0.27)),
                ((0.40, 0.40, 0.2), (0.70, 0.68, 0.18)),
                ((0.42, 0.14, 0.12), (1.10, 0.09, 0.09)),
                ((-0.55, 0.10, 0.1), (-0.18, 0.08, 0.08)),
                ((-0.86, 0.22, 0.09), (-1.22, 0.12, 0.05)),
            ],
        },
    ),
    ("dog", "jumping"): (
        _DOG_HEAD,
        (0.74, 1.74),
        {
            "far": [
                ((0.30, 1.15, 0.12), (0.62, 0.98, 0.09), (0.90, 1.14, 0.08)),
                ((-0.50, 0.8, 0.14), (-0.72, 0.50, 0.09), (-1.02, 0.46, 0.08)),
            ],
            "body": [
                ((-0.50, 0.90, 0.26), (0.34, 1.24, 0.29)),
                ((0.38, 1.34, 0.2), (0.68, 1.68, 0.17)),
                ((0.42, 1.12, 0.14), (0.80, 0.94, 0.1), (1.10, 1.0, 0.08)),
                ((-0.55, 0.84, 0.2), (-0.80, 0.36, 0.1), (-1.12, 0.24, 0.08)),
                ((-0.70, 1.02, 0.08), (-1.0, 1.14, 0.06), (-1.2, 1.36, 0.045)),
            ],
        },
    ),
    ("cat", "standing"): (
        _CAT_HEAD,
        (0.66, 1.02),
        {
            "far": [
                ((0.22, 0.6, 0.09), (0.24, 0.07, 0.065)),
                ((-0.36, 0.6, 0.11), (-0.38, 0.3, 0.07), (-0.34, 0.07, 0.065)),
            ],
            "body": [
                ((-0.50, 0.66, 0.21), (0.40, 0.68, 0.22)),
                ((0.42, 0.74, 0.18), (0.60, 0.94, 0.17)),
                ((0.42, 0.6, 0.1), (0.44, 0.07, 0.07)),
                ((-0.56, 0.6, 0.16), (-0.62, 0.3, 0.075), (-0.56, 0.07, 0.07)),
                (
                    (-0.66, 0.78, 0.07),
                    (-0.92, 0.98, 0.065),
                    (-1.0, 1.3, 0.06),
                    (-0.84, 1.54, 0.055),
                    (-0.94, 1.74, 0.045),
                ),
            ],
        },
    ),
    ("cat", "sitting"): (
        _CAT_HEAD,
        (0.18, 1.30),
        {
            "far": [((0.06, 0.7, 0.09), (0.08, 0.07, 0.065))],
            "body": [
                ((-0.26, 0.30, 0.29), (0.02, 0.86, 0.21)),
                ((0.04, 0.95, 0.18), (0.14, 1.2, 0.16)),
                ((-0.22, 0.08, 0.08), (0.02, 0.07, 0.065)),
                ((0.14, 0.8, 0.1), (0.20, 0.07, 0.07), (0.26, 0.06, 0.055)),
                (
                    (-0.44, 0.10, 0.07),
                    (-0.82, 0.08, 0.065),
                    (-1.04, 0.28, 0.06),
                    (-0.96, 0.56, 0.055),
                    (-0.78, 0.64, 0.045),
                ),
            ],
        },
    ),
    ("cat", "lying"): (
        _CAT_HEAD,
        (0.62, 0.54),
        {
            "far": [((0.36, 0.12, 0.07), (0.74, 0.09, 0.06))],
            "body": [
                ((-0.50, 0.26, 0.25), (0.34, 0.25, 0.22)),
                ((0.36, 0.30, 0.18), (0.56, 0.46, 0.17)),
                ((0.36, 0.1, 0.09), (0.90, 0.07, 0.065)),
                ((-0.48, 0.08, 0.08), (-0.14, 0.07, 0.065)),
                ((-0.70, 0.18, 0.075), (-1.02, 0.10, 0.065), (-1.22, 0.24, 0.055), (-1.20, 0.46, 0.045)),
            ],
        },
    ),
    ("cat", "jumping"): (
        _CAT_HEAD,
        (0.66, 1.50),
        {
            "far": [
                ((0.34, 1.05, 0.09), (0.66, 0.92, 0.07), (0.88, 1.02, 0.065)),
                ((-0.46, 0.74, 0.12), (-0.70, 0.50, 0.075), (-0.94, 0.48, 0.065)),
            ],
            "body": [
                ((-0.48, 0.80, 0.21), (-0.05, 1.05, 0.2), (0.38, 1.14, 0.22)),
                ((0.40, 1.2, 0.18), (0.60, 1.42, 0.17)),
                ((0.42, 1.04, 0.1), (0.78, 0.86, 0.08), (1.02, 0.88, 0.065)),
                ((-0.52, 0.74, 0.16), (-0.78, 0.36, 0.08), (-1.04, 0.28, 0.065)),
                ((-0.62, 0.92, 0.07), (-0.90, 1.06, 0.065), (-1.02, 1.36, 0.06), (-1.2, 1.52, 0.045)),
            ],
        },
    ),
}
_LAYERS = ("far", "body", "ear", "eye", "nose")
_BOX, _GRID = 1.4, 224  # a glyph lies in [-1.4, 1.4] x [-0.35, 2.45] units; its distance field has 224 x 224 cells


def _stroke(x, y, chain):
    """Signed distance (negative inside) to a chain of tapered capsules."""
    out = None
    for (ax, ay, ar), (bx, by, br) in zip(chain, chain[1:] or chain):
        dx, dy = bx - ax, by - ay
        t = (((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9)).clamp(0, 1)
        d = torch.hypot(x - ax - t * dx, y - ay - t * dy) - (ar + t * (br - ar))
        out = d if out is None else torch.minimum(out, d)
    return out


def _moved(chain, dx, dy):
    return [(x + dx, y + dy, radius) for x, y, radius in chain]


def _layer(glyph, layer, x, y):
    """Signed distance to everything in one layer of a glyph."""
    head, head_centre, parts = glyph
    strokes = [_moved(chain, *head_centre) for chain in head.get(layer, ())] + parts.get(layer, [])
    distances = torch.stack([_stroke(x, y, chain) for chain in strokes])
    if layer == "body":  # only the body's strokes melt into each other a little, as flesh does
        return -torch.logsumexp(-distances * 45, 0) / 45
    return distances.amin(0)


@lru_cache(maxsize=1)
def _glyphs():
    """Distance fields of every glyph, in units: (animals * poses, layers, 224, 224), rows from the top."""
    x = ((torch.arange(_GRID) + 0.5) / _GRID * 2 - 1) * _BOX
    y, x = torch.meshgrid(_BOX - 0.35 - x, x, indexing="ij")
    glyphs = [_GLYPHS[animal, pose] for animal in ANIMALS for pose in POSES]
    distances = [_layer(glyph, layer, x, y) for glyph in glyphs for layer in _LAYERS]
    return torch.stack(distances).view(len(glyphs), len(_LAYERS), _GRID, _GRID)


# --- places -----------------------------------------------------------------------------------------------------------
# Ground textures stand still, and repeat every 16 pixels or are smooth: so a convolutional codec can hold them in cells
# of 8 pixels.

_SKY = {  # colours at the top and at the bottom
    "meadow": ((122, 190, 245), (214, 236, 250)),
    "beach": ((128, 200, 240), (250, 236, 206)),
    "snow": ((158, 182, 214), (226, 234, 244)),
    "wall": ((176, 116, 92), (158, 100, 80)),
    "sea": ((250, 190, 140), (252, 226, 190)),
}
# By place, as in PLACES: where the horizon is, how far it curves up and down, and where a tree stands on the ground.
_HORIZON = (56.0, 50.0, 60.0, 90.0, 54.0)
_SWELL = (4.0, 0.0, 5.0, 0.0, 0.0)
_TREE_FOOT = (74.0, 78.0, 76.0, 96.0, 76.0)


def _mix(a, b, t):
    return a + (b - a) * t


def _rgb(*values):
    return torch.tensor(values).view(3, 1, 1) / 255


def _pixels():
    """The middles of all pixels: y and x, each (128, 128)."""
    return torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")


def _wave(x, period):
    return torch.sin(2 * torch.pi * x / period)


def _band(distance, width):
    """1 in the middle of a line, 0 from `width` on."""
    return (1 - distance.abs() / width).clamp(0, 1)


def _staggered(x, row):
    """x, with every other row of cells 16 pixels wide shifted by half a cell."""
    return x + 8 * torch.remainder(row, 2)


def _bricks(y, x):
    row = torch.floor(y / 8)
    shifted = _staggered(x, row)
    inside_x, inside_y = torch.remainder(shifted, 16), torch.remainder(y, 8)
    joint_x = 1 - inside_x.clamp(max=16 - inside_x) / 1.3
    joint_y = 1 - inside_y.clamp(max=8 - inside_y) / 1.3
    joint = torch.maximum(joint_x, joint_y).clamp(0, 1)
    tone = torch.remainder(row * 3 + torch.floor(shifted / 16) * 5, 4) / 3
    brick = _mix(_rgb(164, 104, 84), _rgb(142, 86, 70), tone)
    return _mix(brick, _rgb(206, 190, 176), joint)


def _meadow(y, x, depth):
    inside_y = torch.remainder(y, 8)
    blade = torch.remainder(_staggered(x, torch.floor(y / 8)), 16) - 8
    tuft = ((1.1 + 0.10 * inside_y - (blade.abs() - 0.35 * (8 - inside_y)).abs()) / 1.4).clamp(0, 1)
    grass = _mix(_rgb(136, 196, 92), _rgb(78, 152, 62), depth)
    return _mix(grass, _rgb(48, 122, 50), 0.55 * tuft * (inside_y > 2.5))


def _beach(y, x, depth):
    ripple = 0.5 + 0.5 * torch.sin(2 * torch.pi * (y + 2.0 * _wave(x, 32)) / 16)
    sand = _mix(_rgb(246, 228, 188), _rgb(226, 198, 148), depth)
    sand = _mix(sand, _rgb(206, 174, 124), 0.45 * ripple**2)
    water = _mix(_rgb(64, 158, 196), _rgb(120, 204, 214), ((y - 48) / 14).clamp(0, 1))
    ground = _mix(water, sand, ((y - 62) / 2).clamp(0, 1))
    foam = _band(y - 62 - 0.8 * _wave(x, 32), 1.8)
    return _mix(ground, _rgb(255, 252, 244), foam)


def _snow(y, x, depth):
    drift = 0.5 + 0.5 * torch.sin(2 * torch.pi * (y + 5 * _wave(x, 64)) / 32)
    snow = _mix(_rgb(240, 246, 252), _rgb(222, 232, 246), depth)
    return _mix(snow, _rgb(186, 206, 234), 0.65 * drift**3)


def _pavement(y, x):
    stone = _mix(_rgb(176, 178, 184), _rgb(152, 154, 162), ((y - 90) / 38).clamp(0, 1))
    slab = torch.minimum(torch.remainder(x + 0.5 * (y - 96), 32), torch.remainder(y, 16))
    return _mix(stone, _rgb(122, 124, 134), 0.8 * _band(slab - 0.6, 1.2))


def _sea(y, x, depth):
    phase = _staggered(x, torch.floor((y + 4) / 16))
    crest = torch.remainder(y + 2.2 * torch.cos(2 * torch.pi * phase / 16), 16)
    water = _mix(_rgb(92, 186, 190), _rgb(20, 112, 134), depth)
    return _mix(water, _rgb(196, 236, 232), 0.7 * _band(crest - 4, 1.9))


@lru_cache(maxsize=1)
def _places():
    """Sky and ground of every place: two tensors (places, 3, 128, 128)."""
    y, x = _pixels()
    colours = torch.tensor([_SKY[place] for place in PLACES]) / 255
    top, bottom = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    sky = _mix(top, bottom, (y / 62).clamp(0, 1).expand(len(PLACES), 1, SIZE, SIZE)).clone()
    sky[PLACES.index("wall")] = _bricks(y, x)

    depth = ((y - 44) / (SIZE - 44)).clamp(0, 1)
    grounds = {
        "meadow": _meadow(y, x, depth),
        "beach": _beach(y, x, depth),
        "snow": _snow(y, x, depth),
        "wall": _pavement(y, x),
        "sea": _sea(y, x, depth),
    }
    return sky, torch.stack([grounds[place] for place in PLACES])


# --- rendering --------------------------------------------------------------------------------------------------------


def _cover(distance):
    """How much of a pixel a shape covers, 0..1.

    distance: from the pixel's middle to the shape's edge in pixels, negative inside. So every shape's edge is smooth.
    """
    return (0.5 - distance).clamp(0, 1)


def render(params, with_parts=False):
    """Pictures and masks of the scenes in the list `params`.

    Returns `(pictures, masks)`: (n, 128, 128, 3) and (n, 128, 128), float32 in 0..1, as the host's IMAGE and MASK; the
    mask covers the animal without its shadow. With `with_parts` a third value maps "sun" and "tree" to masks of the
    same shape (without what the animal hides; all zero where there is none). Raises ValueError for an empty list.
    """
    if not params:
        raise ValueError("render needs at least one scene.")
    # Small chunks stay in the processor's cache: eight times as fast as one batch of hundreds.
    chunks = [_render(params[first : first + 8]) for first in range(0, len(params), 8)]
    pictures, masks, suns, trees = (torch.cat(part) for part in zip(*chunks))
    return (pictures, masks, {"sun": suns, "tree": trees}) if with_parts else (pictures, masks)


def _render(scenes):
    """Pictures (b, 128, 128, 3), and masks (b, 128, 128) of the animals, suns and trees."""
    p = {field.name: _column([getattr(scene, field.name) for scene in scenes]) for field in fields(Scene)}
    y, x = _pixels()
    horizon = torch.tensor(_HORIZON)[p["place"]] + p["horizon"]
    horizon = horizon + torch.tensor(_SWELL)[p["place"]] * torch.sin(2 * torch.pi * x / SIZE + p["swell"])

    picture, sun = _draw_place(p, y, x, horizon)
    picture, tree = _draw_tree(picture, p, y, x)  # behind the animal
    picture, animal = _draw_animal(picture, p, y, x)
    picture = (picture * p["light"]).clamp(0, 1)
    sun = sun * (1 - tree) * _cover(y - horizon) * (1 - animal)
    tree = tree * (1 - animal)
    return picture.movedim(1, -1).contiguous(), animal[:, 0], sun[:, 0], tree[:, 0]


def _column(values):
    """A number for each scene, (b, 1, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def _draw_place(p, y, x, horizon):
    """Sky, sun and ground: the picture (b, 3, 128, 128) and the sun's mask (b, 1, 128, 128)."""
    sky, ground = _places()
    place = p["place"].flatten()
    shines = p["sun"] != NO_SIDE
    from_sun = torch.hypot(x - (50 + 28 * p["sun"]), y - (19 + p["horizon"]))
    sun = shines * _cover(from_sun - 10)
    glow = shines * torch.exp(-((from_sun / 19) ** 2))
    picture = _mix(sky[place], _rgb(255, 244, 200), 0.45 * glow)
    picture = _mix(picture, _rgb(255, 226, 70), sun)
    return _mix(picture, ground[place], _cover(horizon - y)), sun


def _draw_tree(picture, p, y, x):
    """The picture with the trees, and their mask; a tree's foot is a little below the horizon, at sea on an island."""
    here = p["tree"] != NO_SIDE
    at_sea = p["place"] == PLACES.index("sea")
    dx = x - (21 + 86 * p["tree"])
    foot = torch.tensor(_TREE_FOOT)[p["place"]] + p["horizon"]
    top = torch.hypot(dx, y - (foot - 40)) - 13
    left = torch.hypot(dx + 8, y - (foot - 31)) - 10
    right = torch.hypot(dx - 8, y - (foot - 31)) - 10
    leaf = torch.minimum(top, torch.minimum(left, right))
    trunk = torch.maximum(dx.abs() - 3, (y - (foot - 13)).abs() - 13)
    island = 3.5 * (torch.hypot(dx / 17, (y - foot + 1) / 3.5) - 1)
    crown = _mix(_rgb(66, 142, 70), _rgb(22, 84, 48), ((y - foot + 50 + 0.5 * dx) / 30).clamp(0, 1))
    picture = _mix(picture, _rgb(236, 208, 150), (here & at_sea) * _cover(island))
    picture = _mix(picture, _rgb(112, 72, 44), here * _cover(trunk))
    picture = _mix(picture, crown, here * _cover(leaf))
    return picture, here * _cover(torch.minimum(leaf, trunk))


def _draw_animal(picture, p, y, x):
    """The picture with the animals and their shadows, and the mask of the animals alone."""
    base = 110.0 + p["dy"]
    dx = x - (torch.tensor([40.0, 64.0, 88.0])[p["position"]] + p["dx"])
    up = (base - y) / p["size"]
    far, body, ear, eye, nose = _placed_glyphs(p, dx / p["size"] * (2 * p["facing"] - 1), up)

    jumps = p["pose"] == POSES.index("jumping")
    spread = torch.where(jumps, 0.75, 0.95) * p["size"]
    shadow = torch.hypot(dx / spread, (y - base) / (0.13 * p["size"])) - 1
    darkness = torch.where(jumps, 0.28, 0.42) * (0.5 - 1.6 * shadow).clamp(0, 1)
    picture = _mix(picture, _rgb(24, 30, 50), darkness)

    coat = _RGB[p["colour"].flatten()][:, :, None, None]
    outline = coat * 0.5
    shade = (0.80 + 0.30 * ((up - 0.1) / 1.3).clamp(0, 1)) + 0.10 * (-body / 6).clamp(0, 1)
    is_black = p["colour"] == COLOURS.index("black")  # its eye is ringed, to be seen at all
    picture = _mix(picture, outline * 0.8, _cover(far - 0.4))
    picture = _mix(picture, coat * 0.68, _cover(far + 1.1))
    picture = _mix(picture, outline * 0.7, _cover(body - 0.4))
    picture = _mix(picture, (coat * shade + 0.03).clamp(0, 1), _cover(body + 1.2))
    picture = _mix(picture, coat * 0.62, _cover(ear) * _cover(body + 0.5))
    picture = _mix(picture, _rgb(250, 250, 250), _cover(eye - 1.2) * is_black)
    picture = _mix(picture, _rgb(20, 16, 22), _cover(torch.minimum(eye, nose)))
    return picture, torch.maximum(_cover(far - 0.4), _cover(body - 0.4))


def _placed_glyphs(p, right, up):
    """Distances in pixels to the layers of the animals, each (b, 1, 128, 128), at places given in the glyphs' units."""
    place = torch.stack([right / _BOX, (_BOX - 0.35 - up) / _BOX], -1).squeeze(1)
    glyphs = _glyphs()[p["animal"].flatten() * len(POSES) + p["pose"].flatten()]
    distance = F.grid_sample(glyphs, place, padding_mode="border", align_corners=False) * p["size"]
    is_inside = (place.abs().amax(-1) < 0.995)[:, None]  # beyond the box of its field nothing of an animal can be
    return torch.where(is_inside, distance, torch.full_like(distance, 9.0)).split(1, 1)
