"""TFDS builder of a folder of clips; see builders/clips.py."""

from __future__ import annotations

import tensorflow_datasets as tfds

from adnet_jax.data.builders import clips


class Builder(clips.ClipShards, tfds.core.ShardBasedBuilder):
  """a folder of clips."""

  name = 'folder'
  VERSION = clips.VERSION
  RELEASE_NOTES = clips.RELEASE_NOTES
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'A folder of clips, such as frames/CLIP/NAME.jpg and masks/CLIP/NAME.png.'

  def _info(self) -> tfds.core.DatasetInfo:
    return clips.info(
      self,
      'Clips of somebody, with masks or without; split train.',
    )
