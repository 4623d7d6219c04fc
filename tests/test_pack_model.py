"""Packing a model to ship: the mean of several, what is recommended, and what cannot be packed."""

from __future__ import annotations

import numpy as np
import tiny

from adnet_jax import weights
from tools import pack_model


def test_the_mean_of_two_with_what_is_recommended(tmp_path, capsys):
  files = [tiny.write_model(tmp_path / f'{seed}.safetensors', seed=seed) for seed in (0, 1)]
  out = tmp_path / 'packed.safetensors'
  arguments = [*map(str, files), '-o', str(out), '--size', '161x97', '--refine', '28', '--dtype', 'float32']
  assert pack_model.main(arguments) == 0
  assert 'refinement  28 pixels' in capsys.readouterr().out
  (one, _), (other, _), (mean, strings) = map(weights.read_file, (*files, out))
  for name, array in mean.items():
    np.testing.assert_allclose(array, (one[name] + other[name]) / 2, rtol=1e-6, atol=1e-7)
  assert (strings['size'], strings['refine'], strings['licence']) == ('161x97', '28', tiny.TERMS)


def test_networks_that_differ_have_no_mean(tmp_path, capsys):
  files = [tiny.write_model(tmp_path / f'{variant}.safetensors', variant) for variant in ('full', 'anchor')]
  assert pack_model.main([*map(str, files), '-o', str(tmp_path / 'packed.safetensors')]) == 2
  assert 'another network than the first' in capsys.readouterr().err
  assert not (tmp_path / 'packed.safetensors').exists()
