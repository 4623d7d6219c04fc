"""Writes a raw data set as records: the script form of `adnet prepare`, whose options it has."""

from __future__ import annotations

import sys

from adnet_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main(['prepare', *sys.argv[1:]]))
