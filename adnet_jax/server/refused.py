"""What a request is answered that cannot be served: a status and one sentence; knows no route."""

from __future__ import annotations

import errno


class Refused(Exception):
  """A request that is answered with an error.

  Attributes:
    status: HTTP status.
    sentence: for the user, without a path of this machine.
    headers: of the answer.
  """

  def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
    super().__init__(sentence)
    self.status, self.sentence, self.headers = status, sentence, headers or {}


def is_full(error: BaseException | None) -> bool:
  """Whether an exception, or what it was raised from, says that the disk or a quota is full."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    error = error.__cause__
  return False
