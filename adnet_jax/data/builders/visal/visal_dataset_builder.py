"""TFDS builder of ViSal; see builders/clips.py."""

from __future__ import annotations

import tensorflow_datasets as tfds

from adnet_jax.data.builders import clips


class Builder(clips.ClipShards, tfds.core.ShardBasedBuilder):
  """ViSal."""

  name = 'visal'
  VERSION = clips.VERSION
  RELEASE_NOTES = clips.RELEASE_NOTES
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'The unpacked data set: the folders ViSal and GroundTruth.'

  def _info(self) -> tfds.core.DatasetInfo:
    return clips.info(
      self,
      '17 clips with every fifth frame annotated; split test.',
      'https://github.com/shenjianbing/videosalData',
      'Wang, Shen, Shao, Consistent Video Saliency Using Local Gradient Flow Optimization, TIP 2015',
    )
