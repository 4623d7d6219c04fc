"""TFDS builder of DAVIS-2016; see builders/clips.py."""

from __future__ import annotations

import tensorflow_datasets as tfds

from adnet_jax.data.builders import clips


class Builder(clips.ClipShards, tfds.core.ShardBasedBuilder):
  """DAVIS-2016."""

  name = 'davis2016'
  VERSION = clips.VERSION
  RELEASE_NOTES = clips.RELEASE_NOTES
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'The unpacked data set: JPEGImages/480p and Annotations/480p, and ImageSets if it has them.'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return clips.info(
      self,
      '50 clips at 854 x 480 with one foreground in every frame; splits train (30) and val (20).',
      'https://davischallenge.org',
      'Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016',
    )
