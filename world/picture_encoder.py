"""The picture side of the world's CLIP: 3 x 128 x 128 pictures in -1..1 to a vector in the space that texts share."""

from typing import Any

import torch
from torch import nn

CONFIG = {  # in the words of the host's configurations of CLIP
    "model_type": "clip_vision_model",
    "image_size": 128,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,  # pixels between two tokens of the last layer but one
    "num_hidden_layers": 4,
    "hidden_size": 96,
    "projection_dim": 128,
}
_WIDTHS = (12, 32, 64, 96, 96)


class PictureEncoder(nn.Module):
    """Four convolutions of stride 2 and two layers, called and answering as the host's CLIP vision models.

    A convolution learns shapes from a few ten thousand drawings, where a transformer on patches needs far more.
    `ops` gives the classes of layers: torch's own for training, the host's when the host shall place and cast the
    weights, which are then of `dtype` and lie on `device`. `norms` are for training and folded into the convolutions at
    its end.
    """

    def __init__(self, ops: Any = nn, hidden=256, dtype=None, device=None):
        super().__init__()
        pairs, kind = list(zip(_WIDTHS, _WIDTHS[1:])), {"dtype": dtype, "device": device}
        self.convolutions = nn.ModuleList(ops.Conv2d(a, b, 3, stride=2, padding=1, **kind) for a, b in pairs)
        self.norms = nn.ModuleList(nn.Identity() for _ in pairs)
        self.hidden = ops.Linear(16 * _WIDTHS[-1], hidden, **kind)
        self.projection = ops.Linear(hidden, CONFIG["projection_dim"], bias=False, **kind)

    def forward(self, pixel_values, intermediate_output=None):
        """The last layer's tokens (b, 16, 96), those of the one before (b, 64, 96), embeddings (b, 128), and None."""
        x = before = torch.nn.functional.pixel_unshuffle(pixel_values, 2)
        for convolution, norm in zip(self.convolutions, self.norms):
            before, x = x, torch.nn.functional.silu(norm(convolution(x)))
        embeddings = self.projection(torch.nn.functional.silu(self.hidden(x.flatten(1))))
        return _tokens(x), _tokens(before), embeddings, None


def _tokens(x):
    """(b, c, h, w) as (b, h * w, c)."""
    return x.flatten(2).transpose(1, 2)
