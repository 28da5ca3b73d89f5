"""Handwriting synthesis: predicts the next pen movement, given a text."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Model, Outputs
from lstm_jax.nnx import LSTM
from lstm_jax.sequence import fused_scan
from lstm_jax.sequence.regularizers import noisy_step

ON, LIFT, END = range(3)  # kinds of points: inside a stroke, its last, the piece's last
FIRST_STEP = -2.5  # log of the initial window movement, letters per point


class Window(NamedTuple):
    """The position of a model in its text.

    Attributes:
      letters: the letters in the window and, last, the end of the text, float32 ``[B, V + 1]``.
      place: centres of its components, in letters from the start, float32 ``[B, K]``.
    """

    letters: jax.Array
    place: jax.Array


class SynthesisCarry(NamedTuple):
    """The state of a model after some of the points.

    Attributes:
      window: the position in the text.
      layers: the state of each layer.
    """

    window: Window
    layers: tuple[Any, ...]


class Mixture(NamedTuple):
    """Mixtures of M bivariate Gaussians, and the kind of the next point.

    Attributes:
      weights: logits of the components, ``[..., M]``.
      means: ``[..., M, 2]``.
      log_deviations: ``[..., M, 2]``.
      correlations: ``[..., M]``, between -1 and 1.
      pen: logits of ``ON``, ``LIFT`` and ``END``, ``[..., 3]``.
    """

    weights: jax.Array
    means: jax.Array
    log_deviations: jax.Array
    correlations: jax.Array
    pen: jax.Array


class HandwritingSynthesis(Model):
    """Predicts each pen movement from the previous ones and the text to write.

    The first layer reads the last move ``x_t`` and a soft window over the letters ``c_u``, which
    only moves forward::

        h1_t = LSTM(x_t, w_{t-1})
        a, b, k = exp(A h1_t + d)                            one of each for K components
        kappa_t = kappa_{t-1} + k
        phi(t, u) = sum_k a_k exp(-b_k (kappa_{t,k} - u)^2)
        w_t = sum_u phi(t, u) c_u

    ``c_u`` is the one-hot vector of letter u. An additional letter follows the last one, so that
    the window can see the end of the text before the pen arrives there.

    Every further layer reads ``x_t``, the layer below and ``w_t``. From the outputs of all layers,
    the model computes a mixture of M Gaussians for the next move, and three logits for its end
    point: inside a stroke, the last point of a stroke, or the last point of all. (The paper has a
    single bit, and stops when the window has passed the text.)

    Args:
      num_letters: V, the number of different letters.
      hidden_features: H, hidden features of each layer.
      num_layers: stacked layers, at least 1.
      window_components: K.
      mixture_components: M.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      dropout: dropout rate of the outputs of every layer, as inputs of other layers and of the
        readout.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = HandwritingSynthesis(5, 8, 2, mixture_components=3, rngs=nnx.Rngs(0))
      >>> moves, text = jnp.zeros((2, 7, 3)), jnp.array([[1, 2, 3], [4, 5, 0]])
      >>> carry, outputs = model(model.initial_carry(2), moves=moves, text=text)
      >>> mixture_of(outputs).means.shape, outputs["window"].shape  # [B, T, M, 2], [B, T, U]
      ((2, 7, 3, 2), (2, 7, 3))

    References:
      Alex Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, 2013,
      sections 4 and 5; David Ha, Douglas Eck, "A Neural Representation of Sketch Drawings",
      arXiv:1704.03477, 2017 (the end as a third state of the pen).
    """

    def __init__(
        self,
        num_letters: int,
        hidden_features: int,
        num_layers: int = 2,
        *,
        window_components: int = 10,
        mixture_components: int = 20,
        cell: Any = "lstm",
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.num_letters, self.dtype = num_letters, dtype
        self.window_components, self.mixture_components = window_components, mixture_components
        glorot = jax.nn.initializers.glorot_uniform()
        layers: list[LSTM] = []
        for n in range(num_layers):
            below = layers[-1].layer.output_size if n else 0
            layers.append(
                LSTM(
                    3 + num_letters + 1 + below, hidden_features, cell=cell, dtype=dtype,
                    time_major=True, rngs=rngs,
                )
            )  # fmt: skip
        self.layers = nnx.List(layers)
        width = layers[0].layer.output_size
        self.window = nnx.Linear(
            width, 3 * window_components, kernel_init=glorot, rngs=rngs,
            bias_init=lambda *_: jnp.repeat(jnp.array([0.0, 0.0, FIRST_STEP]), window_components),
        )  # fmt: skip
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        width = sum(layer.layer.output_size for layer in layers)
        self.readout = nnx.Linear(width, 6 * mixture_components + 3, kernel_init=glorot, rngs=rngs)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"moves": ("b, t, 3", "float32"), "text": ("b, u", "int32")}

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"text": (0, self.num_letters)}

    def initial_carry(self, rows: int) -> SynthesisCarry:
        window = Window(
            jnp.zeros((rows, self.num_letters + 1)), jnp.zeros((rows, self.window_components))
        )
        states = (layer.layer.initial_state(layer.params, (rows,)) for layer in self.layers)
        return SynthesisCarry(window, tuple(states))

    def __call__(
        self,
        carry: SynthesisCarry,
        *,
        moves: jax.Array,
        text: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[SynthesisCarry, Outputs]:
        """The mixture for the move after each one.

        Args:
          carry: as from :meth:`initial_carry`, or from earlier moves for the same text.
          moves: the movement of the pen in x and y, and a flag that is 1 at the end of a stroke;
            float32 ``[B, T, 3]``.
          text: letters from 1 to V, then zeros, at least one, int32 ``[B, U]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, outputs)``: ``mixture`` ``[B, T, 6 M + 3]``, which :func:`mixture_of` reads, and
          ``window``, phi of each letter, ``[B, T, U]``.
        """
        before = jnp.concatenate([jnp.ones_like(text[:, :1]), text[:, :-1]], 1)
        end = (text == 0) & (before > 0)
        # [B, U, V + 1]; zeros past the end
        letters = jax.nn.one_hot(jnp.where(end, self.num_letters, text - 1), self.num_letters + 1)
        # Time is the leading axis here, so that the loop reads each step from contiguous memory.
        xs = moves.swapaxes(0, 1)
        first, *others = self.layers
        ((name, cell),) = dict(first.layer.layers).items()
        run, noise = noisy_step(
            cell, first.params[name], first._key(first.layer, None, rngs),
            (*xs.shape[:-1], 3 + self.num_letters + 1),
        )  # fmt: skip

        def step(carry: tuple[Window, Any], inputs: Any) -> tuple[tuple[Window, Any], Any]:
            window, state = carry
            x, noise = inputs
            state, y = run(state, jnp.concatenate([x, window.letters], -1), noise)
            window, phi = self._moved(window, y, letters)
            return (window, state), (y, window.letters, phi)

        start = (carry.window, carry.layers[0][name])
        if xs.shape[0] == 1:  # a streamed step, also of an exported model: any number of rows
            (window, state), ys = step(start, jax.tree.map(lambda a: a[0], (xs, noise)))
            ys = jax.tree.map(lambda a: a[None], ys)
        else:
            known = all(isinstance(size, int) for size in (*xs.shape, *text.shape))
            scan = fused_scan if known else jax.lax.scan
            (window, state), ys = scan(step, start, (xs, noise))
        y, seen, phi = ys
        outputs, states = [self.dropout(y, rngs=rngs)], [{name: state}]
        for layer, before in zip(others, carry.layers[1:], strict=True):
            state, y = layer(
                jnp.concatenate([xs, seen, outputs[-1]], -1), initial_carry=before,
                return_carry=True, rngs=rngs,
            )  # fmt: skip
            outputs.append(self.dropout(y, rngs=rngs))
            states.append(state)
        found = self.readout(jnp.concatenate(outputs, -1).astype(jnp.float32))
        return SynthesisCarry(window, tuple(states)), {
            "mixture": found.swapaxes(0, 1),
            "window": phi.swapaxes(0, 1),
        }

    def _moved(self, window: Window, y: jax.Array, letters: jax.Array) -> tuple[Window, jax.Array]:
        """The window after a step of the first layer, and phi of each letter."""
        height, width, move = jnp.split(jnp.exp(self.window(y.astype(jnp.float32))), 3, -1)
        place = window.place + move
        distance = place[..., None] - jnp.arange(letters.shape[-2])  # [B, K, U]
        phi = (height[..., None] * jnp.exp(-width[..., None] * distance**2)).sum(-2)
        return Window((phi[..., None] * letters).sum(-2), place), phi


def mixture_of(outputs: Outputs, bias: float | jax.Array = 0.0) -> Mixture:
    """The mixture described by a model's outputs.

    Args:
      outputs: the outputs of a :class:`HandwritingSynthesis`.
      bias: b, which favours neat writing: logits of components are multiplied by 1 + b, and
        deviations by exp(-b).

    References:
      Alex Graves, arXiv:1308.0850, 2013, equations 18 to 22, 61 and 62.
    """
    found = outputs["mixture"]
    sizes = np.cumsum([(found.shape[-1] - 3) // 6] * 6)
    weights, x, y, wide, tall, correlation, pen = jnp.split(found, sizes, -1)
    return Mixture(
        weights * (1 + bias),
        jnp.stack([x, y], -1),
        jnp.stack([wide, tall], -1) - bias,
        # Strictly below 1, where a Gaussian degenerates to a line.
        0.99 * jnp.tanh(correlation),
        pen,
    )


def move_losses(mixture: Mixture, moves: jax.Array, kinds: jax.Array) -> jax.Array:
    """The negative log likelihood of moves and of the kinds of their points.

    Args:
      mixture: ``[...]``.
      moves: ``[..., 2]``.
      kinds: ``ON``, ``LIFT`` or ``END``, ``[...]``.

    Returns:
      Losses in nats ``[...]``.

    >>> zeros = {"mixture": jnp.zeros((1, 6 + 3))}  # one standard normal; three states of the pen
    >>> loss = move_losses(mixture_of(zeros), jnp.zeros((1, 2)), jnp.array([ON]))
    >>> bool(jnp.allclose(loss, jnp.log(2 * jnp.pi) + jnp.log(3)))
    True
    """
    z = (moves[..., None, :] - mixture.means) * jnp.exp(-mixture.log_deviations)
    rho = mixture.correlations
    free = 1 - rho**2
    square = (z**2).sum(-1) - 2 * rho * z.prod(-1)
    densities = -square / (2 * free) - jnp.log(2 * jnp.pi) - jnp.log(free) / 2
    densities = densities - mixture.log_deviations.sum(-1)
    where = jax.nn.logsumexp(jax.nn.log_softmax(mixture.weights) + densities, axis=-1)
    what = jnp.take_along_axis(jax.nn.log_softmax(mixture.pen), kinds[..., None], -1)[..., 0]
    return -where - what


def sampled_moves(
    key: jax.Array, mixture: Mixture, temperature: float | jax.Array = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Samples from mixtures: moves ``[..., 2]`` and the kinds of their points, int32 ``[...]``.

    Args:
      key: a random key.
      mixture: ``[...]``.
      temperature: a factor of the deviations.
    """
    keys = jax.random.split(key, 3)
    chosen = jax.random.categorical(keys[0], mixture.weights)

    def of_chosen(values: jax.Array) -> jax.Array:
        index = chosen[(..., None, *[None] * (values.ndim - chosen.ndim - 1))]
        return jnp.take_along_axis(values, index, chosen.ndim).squeeze(chosen.ndim)

    rho, noise = of_chosen(mixture.correlations), jax.random.normal(keys[1], (*chosen.shape, 2))
    second = rho * noise[..., 0] + jnp.sqrt(1 - rho**2) * noise[..., 1]
    noise = jnp.stack([noise[..., 0], second], -1) * temperature
    moves = of_chosen(mixture.means) + jnp.exp(of_chosen(mixture.log_deviations)) * noise
    return moves, jax.random.categorical(keys[2], mixture.pen).astype(jnp.int32)
