"""Long short-term memory networks in JAX: pure cells, scanned over time.

Every name here, and every part such as ``lstm_jax.nnx``, is imported when it is first used, so
``import lstm_jax`` itself imports nothing.  The core imports no library heavier than jax.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_jax import cells as cells
    from lstm_jax import cli as cli
    from lstm_jax import config as config
    from lstm_jax import data as data
    from lstm_jax import errors as errors
    from lstm_jax import export as export
    from lstm_jax import inspect as inspect
    from lstm_jax import interop as interop
    from lstm_jax import linen as linen
    from lstm_jax import models as models
    from lstm_jax import nnx as nnx
    from lstm_jax import sequence as sequence
    from lstm_jax import tasks as tasks
    from lstm_jax import train as train
    from lstm_jax import tune as tune
    from lstm_jax.cells import (
        CELLS,
        ConvLSTMCell,
        CoupledLSTMCell,
        EntityAwareLSTMCell,
        GRUCell,
        IndRNNCell,
        LayerNormLSTMCell,
        LSTM1997Cell,
        LSTMCell,
        LSTMState,
        MGUCell,
        MinGRUCell,
        MinLSTMCell,
        MogrifierLSTMCell,
        MultiplicativeLSTMCell,
        OdysseyLSTMCell,
        PeepholeLSTMCell,
        ProjectedLSTMCell,
        RNNCell,
        SLSTMCell,
        lstm_cell,
    )
    from lstm_jax.sequence import (
        LSTM,
        Bidirectional,
        Stack,
        choose_engine,
        pack,
        resets_from_dones,
        resets_from_segments,
        stream,
        truncated,
        unpack,
        unroll,
    )
    from lstm_jax.tune import tune_cpu

__all__ = [
    "CELLS",
    "LSTM",
    "Bidirectional",
    "ConvLSTMCell",
    "CoupledLSTMCell",
    "EntityAwareLSTMCell",
    "GRUCell",
    "IndRNNCell",
    "LSTM1997Cell",
    "LSTMCell",
    "LSTMState",
    "LayerNormLSTMCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MogrifierLSTMCell",
    "MultiplicativeLSTMCell",
    "OdysseyLSTMCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RNNCell",
    "SLSTMCell",
    "Stack",
    "choose_engine",
    "lstm_cell",
    "pack",
    "resets_from_dones",
    "resets_from_segments",
    "stream",
    "truncated",
    "tune_cpu",
    "unpack",
    "unroll",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports a name of the core, or a part of the package, at its first use (PEP 562)."""
    if name in __all__:
        for part in ("cells", "sequence", "tune"):
            module = importlib.import_module(f"{__name__}.{part}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    if name in _parts():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_parts()})


def _parts() -> list[str]:
    """The public modules and packages of this package."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if not name.startswith("_")]
