"""Drawn scenes with known truth: one animal, one place, perhaps a sun and a tree, and a caption that says so.

`sample(seed, n)` draws the parameters of n scenes, `render(params)` their pictures and masks, `caption(scene, seed)` a sentence
for one of them. All three are deterministic, so the ideal target of an edit can be drawn: change one field with `replace` and
render again. Everything continuous (place, size, light, horizon) is a field too and stays as it was.

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
    """One scene. The integer fields index the tuples above; the others are continuous and say by how much it varies.

    animal, pose, colour, place, position, facing: see ANIMALS, POSES, COLOURS, PLACES, POSITIONS, SIDES.
    sun, tree: the side they are on (SIDES), or NO_SIDE.
    dx, dy: the animal's shift in pixels (-4 to 4 and -3 to 5); size: pixels per unit of length, 28 to 32.
    horizon: shift of the horizon in pixels (-3 to 3); swell: phase of its curve in radians; light: brightness, 0.94 to 1.04.
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
        for name, least, names in _INDICES:
            if not least <= getattr(self, name) < len(names):
                raise ValueError(
                    f"A scene's {name} is an index from {least} to {len(names) - 1}, not {getattr(self, name)!r}."
                )


_INDICES = (
    ("animal", 0, ANIMALS), ("pose", 0, POSES), ("colour", 0, COLOURS), ("place", 0, PLACES), ("position", 0, POSITIONS),
    ("facing", 0, SIDES), ("sun", NO_SIDE, SIDES), ("tree", NO_SIDE, SIDES),
)  # fmt: skip
_SPANS = ((-4, 4), (-3, 5), (28, 32), (-3, 3), (0, 6.283), (0.94, 1.04))  # dx, dy, size, horizon, swell, light


def sample(seed, n):
    """`n` random scenes as a list of `Scene`; the same seed gives the same list. Raises ValueError for a seed below 0."""
    if seed < 0:
        raise ValueError(f"A scene's seed is an integer from 0, not {seed}.")
    rng = random.Random(int(seed))
    return [
        Scene(
            *(rng.randrange(least, len(names)) for _, least, names in _INDICES),
            *(round(rng.uniform(low, high), 3) for low, high in _SPANS),
        )
        for _ in range(n)
    ]


# --- captions ---------------------------------------------------------------------------------------------------------

_WORDS = {
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
_EXTRA_WORDS = [
    "a",
    "an",
    "the",
    "with",
    "and",
    "sun",
    "tree",
    "is",
    "of",
    "photo",
    "picture",
    "drawing",
    "under",
    "sunny",
    "beside",
    "near",
]


def vocabulary():
    """Every word a caption can hold, sorted: what the text side of the model has an embedding for."""
    phrases = [phrase for groups in _WORDS.values() for group in groups for phrase in group]
    return sorted({word for phrase in phrases for word in phrase.split()} | set(_EXTRA_WORDS))


def plain_caption(scene):
    """The caption in its first form, naming everything: "a red dog sitting on a beach, on the left, facing right, sun, tree"."""
    word = {name: groups[getattr(scene, name)][0] for name, groups in _WORDS.items()}
    extras = [name for name in ("sun", "tree") if getattr(scene, name) != NO_SIDE]
    head = f"a {word['colour']} {word['animal']} {word['pose']} {word['place']}"
    return ", ".join([head, word["position"], word["facing"], *extras])


def caption(scene, seed, keep=0.9):
    """A random sentence about `scene`: synonyms, order and wording by `seed`, each fact named with probability `keep`."""
    rng = random.Random(int(seed))
    word = {name: rng.choice(groups[getattr(scene, name)]) for name, groups in _WORDS.items()}
    kept = {name: text if rng.random() < keep else "" for name, text in word.items()}
    subject = " ".join(filter(None, [rng.choice(("a", "the", "a", "")), kept["colour"], word["animal"]]))
    if rng.random() < 0.15:
        subject = rng.choice(("a photo of", "a picture of", "a drawing of")) + " " + subject
    pose = kept["pose"]
    if pose and not pose.endswith("s") and rng.random() < 0.2:
        pose = "is " + pose
    extras = [name for name in ("sun", "tree") if getattr(scene, name) != NO_SIDE and rng.random() < keep]
    rng.shuffle(extras)
    if extras and rng.random() < 0.4:
        extras = ["with " + " and ".join(rng.choice(("a ", "the ")) + name for name in extras)]
    clauses = [kept["place"], kept["position"], kept["facing"]]
    rng.shuffle(clauses)
    order = rng.random()
    if order < 0.5:  # a red dog sitting on a beach, on the left, facing right, sun, tree
        parts = [
            " ".join(filter(None, [subject, pose, kept["place"]])),
            *(c for c in clauses if c != kept["place"]),
            *extras,
        ]
    elif order < 0.75:  # a red dog, facing right, on the left, sitting, on a beach, sun
        parts = [subject, *rng.sample([pose, *clauses], 4), *extras]
    else:  # on a beach, on the left, with a sun, a red dog sitting, facing right
        parts = [
            *(c for c in clauses if c != kept["facing"]),
            *extras,
            " ".join(filter(None, [subject, pose])),
            kept["facing"],
        ]
    return ", ".join(filter(None, parts))


# --- animals ----------------------------------------------------------------------------------------------------------
# A glyph is made of strokes in its own units, facing right, y up, feet at 0: ((x, y, radius), ...) is a chain of tapered capsules.
# Layers: far limbs, body, ear (a darker patch on the body), eye, nose.

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


@lru_cache(maxsize=1)
def _glyphs():
    """Distance fields of every glyph, in units: (animals * poses, layers, 224, 224), rows from the top."""
    x = ((torch.arange(_GRID) + 0.5) / _GRID * 2 - 1) * _BOX
    y, x = torch.meshgrid(_BOX - 0.35 - x, x, indexing="ij")
    fields_ = []
    for animal in ANIMALS:
        for pose in POSES:
            head, (hx, hy), parts = _GLYPHS[animal, pose]
            for layer in _LAYERS:
                strokes = [[(px + hx, py + hy, r) for px, py, r in chain] for chain in head.get(layer, ())] + parts.get(
                    layer, []
                )
                d = torch.stack([_stroke(x, y, chain) for chain in strokes])
                # Only the body's strokes melt into each other a little, as flesh does.
                fields_.append(-torch.logsumexp(-d * 45, 0) / 45 if layer == "body" else d.amin(0))
    return torch.stack(fields_).view(len(ANIMALS) * len(POSES), len(_LAYERS), _GRID, _GRID)


# --- places -----------------------------------------------------------------------------------------------------------
# Ground textures stand still and repeat every 16 pixels or are smooth: a convolutional codec can hold them in 8-pixel cells.

_SKY = (
    torch.tensor(
        [
            [[122, 190, 245], [214, 236, 250]],
            [[128, 200, 240], [250, 236, 206]],
            [[158, 182, 214], [226, 234, 244]],
            [[176, 116, 92], [158, 100, 80]],
            [[250, 190, 140], [252, 226, 190]],
        ]
    )
    / 255
)  # top, bottom
_HORIZON = (56.0, 50.0, 60.0, 90.0, 54.0)
_SWELL = (4.0, 0.0, 5.0, 0.0, 0.0)


def _mix(a, b, t):
    return a + (b - a) * t


def _rgb(*values):
    return torch.tensor(values).view(3, 1, 1) / 255


@lru_cache(maxsize=1)
def _places():
    """Sky and ground of every place: two tensors (places, 3, 128, 128)."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    depth = ((y - 44) / (SIZE - 44)).clamp(0, 1)
    wave = lambda period: torch.sin(2 * torch.pi * x / period)  # noqa: E731

    row = torch.floor(y / 8)
    brick_x, brick_y = torch.remainder(x + 8 * torch.remainder(row, 2), 16), torch.remainder(y, 8)
    joint = torch.maximum(1 - brick_x.clamp(max=16 - brick_x) / 1.3, 1 - brick_y.clamp(max=8 - brick_y) / 1.3).clamp(
        0, 1
    )
    tone = torch.remainder(row * 3 + torch.floor((x + 8 * torch.remainder(row, 2)) / 16) * 5, 4) / 3
    bricks = _mix(_mix(_rgb(164, 104, 84), _rgb(142, 86, 70), tone), _rgb(206, 190, 176), joint)

    blade = torch.remainder(x + 8 * torch.remainder(torch.floor(y / 8), 2), 16) - 8
    tuft = (
        (1.1 + 0.10 * torch.remainder(y, 8) - (blade.abs() - 0.35 * (8 - torch.remainder(y, 8))).abs()) / 1.4
    ).clamp(0, 1)
    meadow = _mix(
        _mix(_rgb(136, 196, 92), _rgb(78, 152, 62), depth),
        _rgb(48, 122, 50),
        0.55 * tuft * (torch.remainder(y, 8) > 2.5),
    )

    ripple = 0.5 + 0.5 * torch.sin(2 * torch.pi * (y + 2.0 * wave(32)) / 16)
    beach = _mix(_mix(_rgb(246, 228, 188), _rgb(226, 198, 148), depth), _rgb(206, 174, 124), 0.45 * ripple**2)
    water = ((y - 62) / 2).clamp(0, 1)
    beach = _mix(_mix(_rgb(64, 158, 196), _rgb(120, 204, 214), ((y - 48) / 14).clamp(0, 1)), beach, water)
    beach = _mix(beach, _rgb(255, 252, 244), (1 - (y - 62 - 0.8 * wave(32)).abs() / 1.8).clamp(0, 1))

    drift = 0.5 + 0.5 * torch.sin(2 * torch.pi * (y + 5 * wave(64)) / 32)
    snow = _mix(_mix(_rgb(240, 246, 252), _rgb(222, 232, 246), depth), _rgb(186, 206, 234), 0.65 * drift**3)

    pavement = _mix(_rgb(176, 178, 184), _rgb(152, 154, 162), ((y - 90) / 38).clamp(0, 1))
    slab = torch.minimum(torch.remainder(x + 0.5 * (y - 96), 32), torch.remainder(y, 16))
    pavement = _mix(pavement, _rgb(122, 124, 134), 0.8 * (1 - (slab - 0.6).abs() / 1.2).clamp(0, 1))

    crest = torch.remainder(
        y + 2.2 * torch.cos(2 * torch.pi * (x + 8 * torch.remainder(torch.floor((y + 4) / 16), 2)) / 16), 16
    )
    sea = _mix(
        _mix(_rgb(92, 186, 190), _rgb(20, 112, 134), depth),
        _rgb(196, 236, 232),
        0.7 * (1 - (crest - 4).abs() / 1.9).clamp(0, 1),
    )

    top, bottom = _SKY[:, 0, :, None, None], _SKY[:, 1, :, None, None]
    sky = _mix(top, bottom, (y / 62).clamp(0, 1).expand(len(PLACES), 1, SIZE, SIZE)).clone()
    sky[PLACES.index("wall")] = bricks
    return sky, torch.stack([meadow, beach, snow, pavement, sea])


# --- rendering --------------------------------------------------------------------------------------------------------


def _cover(distance):
    """Coverage 0..1 of a pixel from its centre's signed distance to an edge in pixels: the anti-aliasing of every shape."""
    return (0.5 - distance).clamp(0, 1)


def render(params, with_parts=False):
    """Pictures and masks of the scenes in the list `params`.

    Returns `(pictures, masks)`: (n, 128, 128, 3) and (n, 128, 128), float32 in 0..1, the layout of the host's IMAGE and MASK; the
    mask covers the animal without its shadow. With `with_parts` a third value maps "sun" and "tree" to masks of the same shape
    (what the animal hides taken out; all zero where there is none). Raises ValueError for an empty list.
    """
    if not params:
        raise ValueError("render needs at least one scene.")
    # Small chunks stay in the processor's cache: eight times as fast as one batch of hundreds.
    pictures, masks, suns, trees = (
        torch.cat(part) for part in zip(*(_render(params[i : i + 8]) for i in range(0, len(params), 8)))
    )
    return (pictures, masks, {"sun": suns, "tree": trees}) if with_parts else (pictures, masks)


def _render(params):
    p = {f.name: torch.tensor([getattr(s, f.name) for s in params]).view(-1, 1, 1, 1) for f in fields(Scene)}
    flat = {name: value.flatten() for name, value in p.items()}
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")

    # Where one is.
    sky, ground = _places()
    line = torch.tensor(_HORIZON)[p["place"]] + p["horizon"]
    line = line + torch.tensor(_SWELL)[p["place"]] * torch.sin(2 * torch.pi * x / SIZE + p["swell"])
    picture = sky[flat["place"]]

    shines, from_sun = p["sun"] != NO_SIDE, torch.hypot(x - (50 + 28 * p["sun"]), y - (19 + p["horizon"]))
    sun, glow = shines * _cover(from_sun - 10), shines * torch.exp(-((from_sun / 19) ** 2))
    picture = _mix(picture, _rgb(255, 244, 200), 0.45 * glow)
    picture = _mix(picture, _rgb(255, 226, 70), sun)
    picture = _mix(picture, ground[flat["place"]], _cover(line - y))

    # The tree stands behind the animal, its foot a little below the horizon.
    tx, foot = 21 + 86 * p["tree"], torch.tensor([74.0, 78, 76, 96, 76])[p["place"]] + p["horizon"]
    leaf = torch.minimum(
        torch.hypot(x - tx, y - (foot - 40)) - 13,
        torch.minimum(torch.hypot(x - tx + 8, y - (foot - 31)) - 10, torch.hypot(x - tx - 8, y - (foot - 31)) - 10),
    )
    trunk = torch.maximum((x - tx).abs() - 3, (y - (foot - 13)).abs() - 13)
    here = p["tree"] != NO_SIDE
    island = 3.5 * (torch.hypot((x - tx) / 17, (y - foot + 1) / 3.5) - 1)
    picture = _mix(picture, _rgb(236, 208, 150), (here & (p["place"] == PLACES.index("sea"))) * _cover(island))
    picture = _mix(picture, _rgb(112, 72, 44), here * _cover(trunk))
    crown = _mix(_rgb(66, 142, 70), _rgb(22, 84, 48), ((y - foot + 50 + 0.5 * (x - tx)) / 30).clamp(0, 1))
    picture = _mix(picture, crown, here * _cover(leaf))
    tree = here * _cover(torch.minimum(leaf, trunk))

    # The animal: its distance fields, placed, mirrored and scaled to pixels.
    base = 110.0 + p["dy"]
    cx = torch.tensor([40.0, 64.0, 88.0])[p["position"]] + p["dx"]
    ux = (x - cx) / p["size"] * (2 * p["facing"] - 1)
    uy = (base - y) / p["size"]
    grid = torch.stack([ux / _BOX, (_BOX - 0.35 - uy) / _BOX], -1).squeeze(1)
    glyphs = _glyphs()[flat["animal"] * len(POSES) + flat["pose"]]
    d = F.grid_sample(glyphs, grid, padding_mode="border", align_corners=False) * p["size"]
    # Beyond the field's box nothing of the animal can be.
    d = torch.where((grid.abs().amax(-1) < 0.995)[:, None], d, torch.full_like(d, 9.0))
    far, body, ear, eye, nose = d.split(1, 1)

    jump = p["pose"] == POSES.index("jumping")
    spread = torch.where(jump, 0.75, 0.95) * p["size"]
    shadow = torch.hypot((x - cx) / spread, (y - base) / (0.13 * p["size"])) - 1
    picture = _mix(picture, _rgb(24, 30, 50), torch.where(jump, 0.28, 0.42) * (0.5 - 1.6 * shadow).clamp(0, 1))

    coat = _RGB[flat["colour"]][:, :, None, None]
    dark = coat * 0.5
    shade = (0.80 + 0.30 * ((uy - 0.1) / 1.3).clamp(0, 1)) + 0.10 * (-body / 6).clamp(0, 1)
    picture = _mix(picture, dark * 0.8, _cover(far - 0.4))
    picture = _mix(picture, coat * 0.68, _cover(far + 1.1))
    picture = _mix(picture, dark * 0.7, _cover(body - 0.4))
    picture = _mix(picture, (coat * shade + 0.03).clamp(0, 1), _cover(body + 1.2))
    picture = _mix(picture, coat * 0.62, _cover(ear) * _cover(body + 0.5))
    picture = _mix(
        picture,
        _rgb(250, 250, 250),
        _cover(eye - 1.2) * (flat["colour"] == COLOURS.index("black"))[:, None, None, None],
    )
    picture = _mix(picture, _rgb(20, 16, 22), _cover(torch.minimum(eye, nose)))

    mask = torch.maximum(_cover(far - 0.4), _cover(body - 0.4))
    picture = (picture * p["light"]).clamp(0, 1)
    sun, tree = sun * (1 - tree) * _cover(y - line) * (1 - mask), tree * (1 - mask)
    return picture.movedim(1, -1).contiguous(), mask[:, 0], sun[:, 0], tree[:, 0]
