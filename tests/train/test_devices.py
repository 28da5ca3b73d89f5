"""How training programs are compiled."""

import jax
import pytest

from lstm_jax.train.devices import compiled

LOWER = {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (None, LOWER),
        ("--xla_force_host_platform_device_count=2", LOWER),
        ("--xla_a=b --xla_backend_optimization_level=3", None),
    ],
)
def test_a_level_in_the_environment_takes_precedence(monkeypatch, flags, options):
    given = []
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append((function, how)))
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS")
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    compiled(abs, static_argnums=0)
    assert given == [(abs, {"compiler_options": options, "static_argnums": 0})]
