"""How training programs are compiled."""

import jax
import pytest

from lstm_jax.train.devices import compiled

LOWER = {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize(
    ("platform", "flags", "options"),
    [
        ("cpu", None, LOWER),
        ("cpu", "--xla_force_host_platform_device_count=2", LOWER),
        ("cpu", "--xla_a=b --xla_backend_optimization_level=3", None),
        ("gpu", None, None),
    ],
)
def test_a_level_in_the_environment_takes_precedence(monkeypatch, platform, flags, options):
    given = []
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append((function, how)))
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    compiled(abs, static_argnums=0)
    assert given == [(abs, {"compiler_options": options, "static_argnums": 0})]
