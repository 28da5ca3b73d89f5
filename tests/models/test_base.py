"""Compiled models: a sequence read in parts compiles each part's program once."""

import inspect

import jax
import numpy as np
import pytest
from flax import nnx

from lstm_jax import models
from lstm_jax.models import Compiled, LanguageModel, Model
from lstm_jax.models.base import _called
from lstm_jax.tasks.language import continued, stream_losses
from lstm_jax.tasks.sampling import keys


@pytest.fixture(scope="module", params=["as it is", "on a device"])
def model(request):
    """A trained or restored model: its arrays are committed to a device."""
    module = LanguageModel(5, 3, 4, rngs=nnx.Rngs(0))
    if request.param == "on a device":
        graph, state = nnx.split(module)
        module = nnx.merge(graph, jax.device_put(state, jax.devices()[-1]))
    return Compiled(module)


def compiled_by(call) -> int:
    """The number of programs of a model's call that a function compiles."""
    before = _called._cache_size()
    call()
    return _called._cache_size() - before


def test_every_part_of_a_stream_runs_the_same_program(model):
    tokens = np.tile(np.arange(5, dtype=np.int32), 13)
    assert compiled_by(lambda: stream_losses(model, tokens, chunk=17)) == 1
    assert compiled_by(lambda: list(continued(model, tokens[:1], 6, 0.8, seed=0))) == 1


def test_the_keys_of_generation_equal_those_of_a_split():
    for seed in (0, 5, 2**32 - 1):
        expected = jax.random.key_data(jax.random.split(jax.random.key(seed), 7))
        np.testing.assert_array_equal(keys(np.uint32(seed), 7), expected)


MODELS = {
    name: each
    for name, each in vars(models).items()
    if isinstance(each, type) and issubclass(each, Model) and "__call__" in vars(each)
}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"Model"}))
def test_integer_inputs_have_ranges(name):
    """An exported model rejects tokens and lengths outside of its ranges."""
    if "int32" in inspect.getsource(MODELS[name].inputs.fget):
        assert MODELS[name].ranges is not Model.ranges
