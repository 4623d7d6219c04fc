"""Typed errors that the library raises and the command line maps to exit codes; knows nothing else of the project."""

from __future__ import annotations


class AdnetError(Exception):
  """A failure that the user can act on.

  Attributes:
    what: what went wrong, without a full stop.
    where: file, frame or key it concerns; None where there is none.
    advice: what to do about it; None where nothing helps.
    exit_code: the process's exit status when the command line meets this error.
  """

  exit_code = 1

  def __init__(self, what: str, where: object = None, advice: str | None = None):
    self.what, self.where, self.advice = what, where, advice
    text = what if where is None else f'{what} ({where})'
    super().__init__(text if advice is None else f'{text}: {advice}')


class UsageError(AdnetError):
  """Wrong command line, option or configuration; or an extra that is not installed."""

  exit_code = 2


class DataError(AdnetError):
  """Input frames, videos, masks or data sets that cannot be used."""

  exit_code = 3


class WeightsError(AdnetError):
  """A model file, foreign weights or a checkpoint that cannot be used."""

  exit_code = 4


class DivergedError(AdnetError):
  """Training whose loss or gradients stay not finite."""

  exit_code = 5


class DeviceError(AdnetError):
  """A device that is missing, lost or out of memory."""

  exit_code = 6
