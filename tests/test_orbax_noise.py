"""What abandoned reads of Orbax cause when garbage is collected; where warnings are errors any test would fail."""

from __future__ import annotations

import sys

from adnet_jax import orbax_noise


def test_only_what_orbax_abandons_is_not_told_of(monkeypatch):
  async def read():
    pass

  class Broken:
    def __del__(self):
      raise OSError('of a disk')

  told = []
  monkeypatch.setattr(orbax_noise, '_installed', False)
  monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: told.append(str(unraisable.exc_value)))
  orbax_noise.silence()
  read()
  Broken()
  assert told == ['of a disk']
