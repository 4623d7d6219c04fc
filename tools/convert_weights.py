"""Converts foreign weights to model files: the script form of `adnet convert`, whose options it has."""

from __future__ import annotations

import sys

from adnet_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main(['convert', *sys.argv[1:]]))
