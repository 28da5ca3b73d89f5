"""The activation functions of ONNX's recurrent operators, and which of ours they are."""

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
"""Each function by its name, of an argument and the two numbers alpha and beta."""

ALPHA = {
    "Affine": 1.0,
    "Elu": 1.0,
    "HardSigmoid": 0.2,
    "LeakyRelu": 0.01,
    "ScaledTanh": 1.0,
    "ThresholdedRelu": 1.0,
}
"""The alpha of those that have one, where none is given."""

BETA = {"Affine": 0.0, "HardSigmoid": 0.5, "ScaledTanh": 1.0}
"""The beta of those that have one, where none is given."""


@dataclasses.dataclass(frozen=True)
class OnnxActivation:
    """An activation function of ONNX with its numbers; equal to another of the same.

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
"""Functions that both sides have, by our names."""


def activations_from_onnx(
    attributes: Mapping[str, Any], defaults: Sequence[str], directions: int
) -> list[tuple[Activation, ...]]:
    """The functions of each direction, as options of our cells.

    Args:
      attributes: of a node; ``activations`` names the functions, of one direction after the
        other, and ``activation_alpha`` and ``activation_beta`` hold the numbers of those that
        have any, in the same order; where they run out, the function's own default counts.
      defaults: the functions of one direction where ``activations`` names none.
      directions: 1 or 2.

    Raises:
      ValueError: there is no such function, or not one for each place.

    >>> activations_from_onnx({"activations": ["Sigmoid", "Elu"]}, ["Sigmoid", "Tanh"], 1)
    [('sigmoid', 'elu')]
    """
    given = attributes.get("activations") or [*defaults] * directions
    if len(given) != len(defaults) * directions:
        raise ValueError(
            f"activations must name {len(defaults)} functions a direction, "
            f"{len(defaults) * directions} in all, got {', '.join(given)}"
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
    """Its name here, where we have it; attributes of ONNX are float32."""
    numbers = np.array([function.alpha, function.beta], np.float32)
    for name, same in SAME.items():
        near = numbers == np.array([same.alpha, same.beta], np.float32)
        if same.name == function.name and near.all():
            return name
    return function


def activation_to_onnx(given: Activation) -> OnnxActivation | None:
    """An option of our cells as ONNX has it, or None where it does not.

    >>> activation_to_onnx("softsign"), activation_to_onnx("gelu")
    (OnnxActivation(name='Softsign', alpha=0.0, beta=0.0), None)
    """
    function = activation("activation", given)
    if isinstance(function, OnnxActivation):
        return function
    return next((same for ours, same in SAME.items() if ACTIVATIONS[ours] is function), None)


def attributes_of(functions: Sequence[OnnxActivation]) -> dict[str, Any]:
    """The attributes that name these functions, as :func:`activations_from_onnx` reads them.

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
