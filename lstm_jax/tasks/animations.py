"""Animated plots as GIF files."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_jax._labels import label
from lstm_jax.data import BONES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 6  # the number of classes whose probabilities are shown
COLORS = 32  # of a GIF file
NAME_LENGTH = 24


def gif(images: Iterable[np.ndarray], milliseconds: int) -> bytes:
    """Images as a GIF file that repeats forever.

    Args:
      images: uint8 ``[height, width]`` (grey) or ``[height, width, 3]``, all of the same size.
      milliseconds: the duration of each image; the last one is shown for one second longer.

    >>> gif([np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)], 100)[:6]
    b'GIF89a'
    """
    from PIL import Image

    frames = [Image.fromarray(image).quantize(COLORS) for image in images]
    times = [milliseconds] * (len(frames) - 1) + [milliseconds + 1000]
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True
    )
    return file.getvalue()


def action_animation(
    joints: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> bytes:
    """A moving skeleton next to the probabilities of its most likely classes, as a GIF file.

    Args:
      joints: ``[T, 20, 3]``, as :func:`lstm_jax.data.skeletons.body_coordinates` returns them.
      probabilities: the class probabilities after each frame, ``[T, C]``.
      classes: the names of the C classes.
    """
    from matplotlib.figure import Figure

    shown = np.sort(np.argsort(-probabilities.max(0))[:BARS])[::-1]
    figure = Figure(figsize=(5.6, 3.0), dpi=80, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    low, high = joints[..., :2].min((0, 1)) - 0.1, joints[..., :2].max((0, 1)) + 0.1
    left.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
    bones = [
        left.plot([], [], color="#0072b2", linewidth=3, solid_capstyle="round")[0] for _ in BONES
    ]
    names = [label(classes[n], NAME_LENGTH) for n in shown]
    bars = right.barh(names, np.zeros(len(shown)), color="#d55e00")
    right.set(xlim=(0, 1), title="probability so far")
    right.title.set_fontsize("medium")

    def images() -> Iterable[np.ndarray]:
        for frame, (points, scores) in enumerate(zip(joints, probabilities, strict=True), 1):
            for line, (a, b) in zip(bones, BONES, strict=True):
                line.set_data(points[[a, b], 0], points[[a, b], 1])
            for bar, n in zip(bars, shown, strict=True):
                bar.set_width(scores[n])
            left.set_xlabel(f"frame {frame} of {len(joints)}")
            yield pixels(figure)

    return gif(images(), milliseconds=67)  # 15 frames per second, as recorded by the camera


def forecast_animation(seen: np.ndarray, truth: np.ndarray, forecast: np.ndarray) -> bytes:
    """Videos above their forecasts, as a GIF file.

    At first, both rows show the observed frames.  After that, each forecast has a grey border, and
    the true frames are black where they are unknown.

    Args:
      seen: from 0 to 1, ``[N, T, height, width, C]``.
      truth: ``[N, F, height, width, C]``; F = 0 if it is unknown.
      forecast: ``[N, F, height, width, C]``.
    """
    unknown = np.zeros((len(seen), len(forecast[0]) - len(truth[0]), *seen.shape[2:]))
    rows = [np.concatenate([seen, truth, unknown], 1), np.concatenate([seen, forecast], 1)]
    rgb = [np.repeat(row, 3, -1) if row.shape[-1] == 1 else row[..., :3] for row in rows]
    if rgb[0].shape[-1] == 2:  # two channels are not colours
        rgb = [np.repeat(row.mean(-1, keepdims=True), 3, -1) for row in rows]
    video = np.stack([np.rint(255 * row.clip(0, 1)).astype(np.uint8) for row in rgb])
    _, count, frames, height, width, _ = video.shape
    canvas = np.full((frames, 2, height + 4, count, width + 4, 3), 40, np.uint8)
    canvas[seen.shape[1] :, 1] = 150
    canvas[:, :, 2:-2, :, 2:-2] = video.transpose(2, 0, 3, 1, 4, 5)
    return gif(canvas.reshape(frames, 2 * (height + 4), count * (width + 4), 3), milliseconds=150)


def pixels(figure: "Figure") -> np.ndarray:
    """A figure as an image, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
