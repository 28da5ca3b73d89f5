"""The activation functions of ONNX's recurrent operators, and their lstm_jax equivalents."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.activations import ACTIVATIONS, Activation, activation

# fmt: off
FUNCTIONS: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "Elu": lambda x, alpha, beta: jax.nn.elu(x, alpha),
    "HardSigmoid": lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0.0, 1.0),
    "LeakyRelu": lambda x, alpha, beta: jax.nn.leaky_relu(x, alpha),
    "Relu": lambda x, alpha, beta: jax.nn.relu(x),
    "ScaledTanh": lambda x, alpha, beta: alpha * jnp.tanh(beta * x),
    "Sigmoid": lambda x, alpha, beta: jax.nn.sigmoid(x),
    "Softplus": lambda x, alpha, beta: jax.nn.softplus(x),
    "Softsign": lambda x, alpha, beta: jax.nn.soft_sign(x),
    "Tanh": lambda x, alpha, beta: jnp.tanh(x),
    "ThresholdedRelu": lambda x, alpha, beta: jnp.where(x >= alpha, x, 0.0),
}
# fmt: on
"""Each function by name; its arguments are the array and the numbers alpha and beta."""

ALPHA = {
    "Affine": 1.0,
    "Elu": 1.0,
    "HardSigmoid": 0.2,
    "LeakyRelu": 0.01,
    "ScaledTanh": 1.0,
    "ThresholdedRelu": 1.0,
}
"""The default alpha of each function that has one."""

BETA = {"Affine": 0.0, "HardSigmoid": 0.5, "ScaledTanh": 1.0}
"""The default beta of each function that has one."""


@dataclasses.dataclass(frozen=True)
class OnnxActivation:
    """An activation function of ONNX with its alpha and beta.

    >>> OnnxActivation("HardSigmoid", alpha=0.25, beta=0.5)(jnp.array([-3.0, 1.0])).tolist()
    [0.0, 0.75]
    """

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return FUNCTIONS[self.name](x, self.alpha, self.beta)


SAME = {
    "elu": OnnxActivation("Elu", 1.0),
    "hard_sigmoid": OnnxActivation("HardSigmoid", 1 / 6, 0.5),
    "identity": OnnxActivation("Affine", 1.0, 0.0),
    "leaky_relu": OnnxActivation("LeakyRelu", 0.01),
    "relu": OnnxActivation("Relu"),
    "sigmoid": OnnxActivation("Sigmoid"),
    "softplus": OnnxActivation("Softplus"),
    "softsign": OnnxActivation("Softsign"),
    "tanh": OnnxActivation("Tanh"),
}
"""The functions that both libraries have, by their lstm_jax names."""


def activations_from_onnx(
    attributes: Mapping[str, Any], defaults: Sequence[str], directions: int
) -> list[tuple[Activation, ...]]:
    """Converts the functions of each direction to options of lstm_jax cells.

    Args:
      attributes: the attributes of a node.  ``activations`` names the functions, one direction
        after the other.  ``activation_alpha`` and ``activation_beta`` hold the numbers of those
        functions that have any, in the same order; missing numbers have the function's default.
      defaults: the functions of one direction if ``activations`` is missing.
      directions: 1 or 2.

    Raises:
      ValueError: a function is unknown, or the number of functions is wrong.

    >>> activations_from_onnx({"activations": ["Sigmoid", "Elu"]}, ["Sigmoid", "Tanh"], 1)
    [('sigmoid', 'elu')]
    """
    given = attributes.get("activations") or [*defaults] * directions
    if len(given) != len(defaults) * directions:
        raise ValueError(
            f"activations must name {len(defaults)} functions per direction, "
            f"{len(defaults) * directions} in total, got {', '.join(given)}"
        )
    alphas = iter(attributes.get("activation_alpha", ()))
    betas = iter(attributes.get("activation_beta", ()))
    names = {name.lower(): name for name in FUNCTIONS}  # some exporters write TANH
    functions = []
    for word in given:
        if word.lower() not in names:
            raise ValueError(f"activations must be of {', '.join(FUNCTIONS)}, got {word!r}")
        name = names[word.lower()]
        alpha = next(alphas, ALPHA[name]) if name in ALPHA else 0.0
        beta = next(betas, BETA[name]) if name in BETA else 0.0
        functions.append(_ours(OnnxActivation(name, float(alpha), float(beta))))
    count = len(defaults)
    return [tuple(functions[n * count : (n + 1) * count]) for n in range(directions)]


def _ours(function: OnnxActivation) -> Activation:
    """The lstm_jax name of a function if there is one; ONNX attributes are float32."""
    numbers = np.array([function.alpha, function.beta], np.float32)
    for name, same in SAME.items():
        near = numbers == np.array([same.alpha, same.beta], np.float32)
        if same.name == function.name and near.all():
            return name
    return function


def activation_to_onnx(given: Activation) -> OnnxActivation | None:
    """Converts an option of an lstm_jax cell to a function of ONNX, or None if it has none.

    >>> activation_to_onnx("softsign"), activation_to_onnx("gelu")
    (OnnxActivation(name='Softsign', alpha=0.0, beta=0.0), None)
    """
    function = activation("activation", given)
    if isinstance(function, OnnxActivation):
        return function
    return next((same for ours, same in SAME.items() if ACTIVATIONS[ours] is function), None)


def attributes_of(functions: Sequence[OnnxActivation]) -> dict[str, Any]:
    """The attributes for these functions, the inverse of :func:`activations_from_onnx`.

    >>> attributes_of([OnnxActivation("Sigmoid"), OnnxActivation("LeakyRelu", 0.5)])
    {'activations': ['Sigmoid', 'LeakyRelu'], 'activation_alpha': [0.5]}
    """
    attributes: dict[str, Any] = {"activations": [function.name for function in functions]}
    alphas = [function.alpha for function in functions if function.name in ALPHA]
    betas = [function.beta for function in functions if function.name in BETA]
    if alphas:
        attributes["activation_alpha"] = alphas
    if betas:
        attributes["activation_beta"] = betas
    return attributes
