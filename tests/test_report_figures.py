from __future__ import annotations

import io

import numpy as np
import pytest
import report_files
from PIL import Image

from adnet_jax.errors import DataError, UsageError
from adnet_jax.report import figures
from adnet_jax.report.entries import read_entries


def entries(tmp_path, **files):
  return read_entries(report_files.write(tmp_path, **files))


def three(tmp_path):
  return entries(
    tmp_path,
    ours=report_files.davis({'cat': [0.5], 'dog': [0.9], 'hen': [0.7]}),
    a=report_files.davis({'cat': [0.6], 'dog': [0.8], 'hen': [0.1]}),
    b=report_files.davis({'dog': [0.3], 'owl': [0.3]}),
  )


def test_bars_stand_under_our_line_which_falls(tmp_path):
  ax = figures.per_sequence(three(tmp_path)).axes[0]
  assert [label.get_text() for label in ax.get_xticklabels()] == ['dog', 'hen', 'cat']
  assert list(ax.lines[0].get_ydata()) == pytest.approx([0.9, 0.7, 0.5])
  heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
  assert heights[0] == pytest.approx([0.8, 0.1, 0.6])
  assert heights[1][0] == pytest.approx(0.3)
  assert np.isnan(heights[1][1:]).all()


def test_any_file_may_be_the_line(tmp_path):
  ax = figures.per_sequence(three(tmp_path), 'F mean', 'a').axes[0]
  assert [label.get_text() for label in ax.get_xticklabels()] == ['dog', 'cat', 'hen']
  with pytest.raises(UsageError, match='no score file of this name'):
    figures.per_sequence(three(tmp_path), ours='c')


def test_files_of_different_rules_share_no_bars(tmp_path):
  mixed = entries(tmp_path, a=report_files.flat(0.5), b=report_files.saliency(0.1, 0.5))
  with pytest.raises(UsageError, match='different rules'):
    figures.per_sequence(mixed)
  with pytest.raises(DataError, match='no T mean'):
    figures.per_sequence(mixed[:1], 'T mean')


def test_curves_have_a_panel_for_each_data_set(tmp_path):
  found = entries(
    tmp_path,
    a__davis=report_files.saliency(0.1, 0.5),
    b__davis=report_files.saliency(0.1, 0.6),
    a__visal=report_files.saliency(0.1, 0.7),
    c=report_files.flat(0.5),
  )
  figure = figures.precision_recall(found)
  assert [ax.get_title() for ax in figure.axes] == ['DAVIS-2016, adnet-saliency', 'ViSal, adnet-saliency']
  assert [len(ax.lines) for ax in figure.axes] == [2, 1]
  assert list(figure.axes[0].lines[0].get_xdata()) == [0.0, 0.6, 1.0]
  assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.9, 0.4]
  with pytest.raises(DataError, match='no score file with a curve'):
    figures.precision_recall(found[-1:])


def test_time_has_a_gap_where_a_frame_has_no_value(tmp_path):
  found = entries(tmp_path, a=report_files.davis({'cat': [0.5, None, 0.7]}, first=4))
  line = figures.over_time(found, 'cat').axes[0].lines[0]
  assert list(line.get_xdata()) == [4, 5, 6]
  assert np.isnan(line.get_ydata()[1])
  with pytest.raises(DataError, match='no T of frames'):
    figures.over_time(found, 'cat', 'T')


def test_names_are_no_formulas(tmp_path):
  found = entries(tmp_path, **{'a_$x^2$': report_files.davis({'$b$': [0.5]}), 'c': report_files.davis({'$b$': [0.4]})})
  figures.save(figures.per_sequence(found), tmp_path / 'bars.svg')
  text = (tmp_path / 'bars.svg').read_text()
  # matplotlib writes what it draws as glyphs into a comment.
  assert '<!-- a_$x^2$ -->' in text and '<!-- $b$ -->' in text


def test_rows_of_overlays_are_spread_evenly_and_tinted(tmp_path):
  report_files.make_clips(tmp_path, {'cat': [0.0] * 9, 'dog': [0.0] * 4})
  rows = figures.overlay_rows(tmp_path / 'frames', tmp_path / 'ours', ['dog', 'cat'], count=3)
  assert {clip: [name for name, _, _ in frames] for clip, frames in rows.items()} == {
    'dog': ['00000', '00002', '00003'],
    'cat': ['00000', '00004', '00008'],
  }
  _, rgb, mask = rows['cat'][1]
  np.testing.assert_array_equal(mask, report_files.ellipse(4))
  assert rgb.shape == (*report_files.SHAPE, 3)
  figures.save(figures.overlays(rows), tmp_path / 'rows.png')
  with Image.open(tmp_path / 'rows.png') as picture:
    assert picture.width > picture.height > 100


def test_clips_without_a_common_frame_are_named(tmp_path):
  report_files.make_clips(tmp_path, {'cat': [0.0] * 3})
  with pytest.raises(DataError, match=r'no frame with both a picture and a mask \(hen\)'):
    figures.overlay_rows(tmp_path / 'frames', tmp_path / 'ours', ['cat', 'hen'])


def test_figures_are_saved_whole_and_the_same_every_time(tmp_path):
  found = three(tmp_path / 'files')
  for kind in ('png', 'svg', 'pdf'):
    paths = [figures.save(figures.per_sequence(found), tmp_path / 'new' / f'{index}.{kind}') for index in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
  assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == [
    '0.pdf', '0.png', '0.svg', '1.pdf', '1.png', '1.svg',
  ]  # fmt: skip
  with Image.open(io.BytesIO((tmp_path / 'new' / '0.png').read_bytes())) as picture:
    picture.load()
  figure = figures.per_sequence(found)
  with pytest.raises(UsageError, match='format of a figure'):
    figures.save(figure, tmp_path / 'x.gif')
  (tmp_path / 'file').write_text('')
  with pytest.raises(DataError, match='cannot be written'):
    figures.save(figure, tmp_path / 'file' / 'x.png')
