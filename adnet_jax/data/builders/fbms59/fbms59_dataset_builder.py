"""TFDS builder of FBMS-59 and BMS-26; see builders/clips.py."""

from __future__ import annotations

import tensorflow_datasets as tfds

from adnet_jax.data.builders import clips


class Builder(clips.ClipShards, tfds.core.ShardBasedBuilder):
  """FBMS-59 and BMS-26."""

  name = 'fbms59'
  VERSION = clips.VERSION
  RELEASE_NOTES = clips.RELEASE_NOTES
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'The unpacked data set: Trainingset and Testset, or sequences with their Def.dat and GroundTruth.'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return clips.info(
      self,
      '59 sequences, some frames of each annotated with several objects; splits train (29) and test (30).',
      'https://lmb.informatik.uni-freiburg.de/resources/datasets',
      'Ochs, Malik, Brox, Segmentation of Moving Objects by Long Term Video Analysis, PAMI 2014',
    )
