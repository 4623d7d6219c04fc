from __future__ import annotations

import copy
import re

import pytest
import report_files

from adnet_jax.errors import DataError
from adnet_jax.report import grid, tables
from adnet_jax.report.entries import DAVIS, FBMS, VISAL, group, read_entries, remarks


def entries(tmp_path, **files):
  return read_entries(report_files.write(tmp_path, **files))


def row(table: grid.Table, label: str) -> dict[str, str]:
  """Texts of the row that begins with this label, by the columns' titles."""
  found = [cells for cells in table.rows if cells[0].text == label]
  assert len(found) == 1, [cells[0].text for cells in table.rows]
  return {column.title: cell.text for column, cell in zip(table.columns, found[0], strict=True)}


def test_printed_figures_are_those_of_the_paper():
  ablation = {one['variant']: one for one in tables.printed()['table1_davis_ablation']}
  assert list(ablation) == ['baseline', 'intra_frame', 'anchor', 'anchor_diffusion', 'full']
  assert (ablation['full']['J'], ablation['full']['F']) == (78.26, 77.11)
  for one in ablation.values():
    for metric in 'JF':
      assert one[metric] - ablation['baseline'][metric] == pytest.approx(one[f'{metric}_gain'], abs=1e-9)
  methods = {one['method']: one for one in tables.printed()['table2_davis_fbms']}
  assert [methods['AD-Net (multiple scales)'][key] for key in ('davis_J', 'davis_F', 'fbms_F')] == [79.4, 78.2, 81.2]
  assert [methods['AD-Net + instance pruning'][key] for key in ('davis_J', 'davis_F')] == [81.7, 80.5]
  saliency = tables.printed()['table3_saliency'][-1]
  assert [saliency[key] for key in ('davis_mae', 'davis_F', 'fbms_mae', 'fbms_F', 'visal_mae', 'visal_F')] == [
    0.044, 80.8, 0.064, 81.2, 0.03, 90.4,
  ]  # fmt: skip
  assert len(tables.printed()['table4_davis_global']['rows']) == 17


def test_without_files_every_measured_cell_says_so():
  for table in tables.paper_tables([]):
    measured = [index for index, column in enumerate(table.columns) if column.label != 'printed']
    numbers = [cells[index] for cells in table.rows for index in measured if not table.columns[index].text]
    assert {cell.text for cell in numbers} == {grid.MISSING}
    assert all(cell.kind != 'measured' for cells in table.rows for cell in cells)


@pytest.mark.parametrize('names', [('baseline', 'anchor', 'full'), ('base', 'concat', 'ad')])
def test_table_1_puts_variants_and_gains_beside_the_printed_ones(tmp_path, names):
  values = dict(zip(names, (0.7541, 0.76, 0.7826), strict=True))
  table = tables.table1(entries(tmp_path, **{name: report_files.flat(j) for name, j in values.items()}))
  full = row(table, 'AD-Net (single scale)')
  assert (full['J printed'], full['J measured']) == ('78.26', '78.26')
  assert (full['J over baseline printed'], full['J over baseline measured']) == ('+2.85', '+2.85')
  assert (full['F printed'], full['F measured']) == ('77.11', '68.26')
  assert row(table, 'Baseline + anchor')['J over baseline measured'] == '+0.59'
  assert row(table, 'Baseline')['J over baseline measured'] == '0.00'
  assert row(table, 'Baseline + intra-frame')['J measured'] == grid.MISSING


def test_table_1_has_no_gain_without_a_baseline(tmp_path):
  full = row(tables.table1(entries(tmp_path, full=report_files.flat(0.8))), 'AD-Net (single scale)')
  assert (full['J measured'], full['J over baseline measured']) == ('80.00', grid.MISSING)


def test_table_1_has_a_row_for_both_frames_random_only_where_it_was_measured(tmp_path):
  without = entries(tmp_path, baseline=report_files.flat(0.75), full=report_files.flat(0.8))
  assert len(tables.table1(without).rows) == 5
  both = [*without, *entries(tmp_path, both_frames_random=report_files.flat(0.78))]
  found = row(tables.table1(both), 'Both frames random')
  assert (found['J printed'], found['J measured'], found['J over baseline measured']) == (
    '\N{EN DASH}',
    '78.00',
    '+3.00',
  )
  assert 'both_frames_random' not in [cells[0].text for cells in tables.table2(both).rows]


def test_table_2_fills_rows_by_name_and_columns_by_rule(tmp_path):
  found = entries(
    tmp_path,
    MotAdapt=report_files.flat(0.7718),
    mine=report_files.flat(0.6),
    mine__fbms__pooled=report_files.other('fbms-pooled', {'P': 0.8, 'R': 0.7, 'F': 0.751}, {}),
    mine__fbms__mean__pr=report_files.other('fbms-mean-pr', {'P': 0.8, 'R': 0.7, 'F': 0.762}, {}),
    adnet__multiscale=report_files.flat(0.79),
    ad__pruned=report_files.flat(0.81),
    baseline=report_files.flat(0.7),
  )
  table = tables.table2(found)
  assert row(table, 'MotAdapt')['DAVIS J printed'] == '77.2'
  assert row(table, 'MotAdapt')['DAVIS J measured'] == '77.2'
  own = row(table, 'mine')
  assert (own['DAVIS J printed'], own['DAVIS J measured']) == ('\N{EN DASH}', '60.0')
  assert (own['FBMS F fbms-pooled'], own['FBMS F fbms-mean-pr']) == ('75.1', '76.2')
  assert row(table, 'AD-Net (multiple scales)')['DAVIS J measured'] == '79.0'
  assert row(table, 'AD-Net + instance pruning')['DAVIS J measured'] == '81.0'
  assert 'ad-pruned in the row AD-Net + instance pruning: rule davis2016, protocol paper, 20 clips' in table.notes
  assert 'baseline' not in [cells[0].text for cells in table.rows]
  assert row(table, 'PReMVOS')['DAVIS J measured'] == grid.MISSING


def test_table_3_takes_pooled_saliency_alone(tmp_path):
  found = entries(
    tmp_path,
    AD__Net__davis=report_files.saliency(0.0444, 0.808),
    AD__Net__visal=report_files.saliency(0.03, 0.9),
    other__fbms=report_files.other('davsod', {'MAE': 0.05, 'F_max': 0.8}, {}),
  )
  table = tables.table3(found)
  ours = row(table, 'AD-Net')
  assert [ours[f'{DAVIS} MAE {which}'] for which in ('printed', 'measured')] == ['0.044', '0.044*']
  assert [ours[f'{DAVIS} F {which}'] for which in ('printed', 'measured')] == ['80.8', '80.8*']
  assert (ours[f'{VISAL} F measured'], ours[f'{FBMS} F measured']) == ('90.0', grid.MISSING)
  assert tables.unplaced(found) == ['other: no table of the paper has numbers by the rule davsod on FBMS']


def test_table_4_has_t_and_says_what_is_odd_about_the_printed_one(tmp_path):
  scores = report_files.flat(0.7718, stability='davis-matlab-master')
  scores['dataset']['T'] = {'mean': 0.279}
  table = tables.table4(entries(tmp_path, motadapt=scores))
  ours = row(table, 'MotAdapt')
  assert (ours['T printed'], ours['T measured'], ours['J recall measured']) == ('27.9', '27.9', '100.0')
  notes = ' '.join(table.notes)
  assert '36.9' in notes and '.214' in notes
  assert 'motadapt: rule davis2016, protocol paper, 20 clips, T by davis-matlab-master' in notes


def test_numbers_over_other_clips_or_frames_carry_a_star(tmp_path):
  found = entries(
    tmp_path,
    few=report_files.flat(0.8, ['dog', 'goat']),
    part=report_files.flat(0.7, subset=True),
    whole=report_files.flat(0.6),
  )
  table = tables.table2(found)
  assert [row(table, name)['DAVIS J measured'] for name in ('few', 'part', 'whole')] == ['80.0*', '70.0*', '60.0']
  assert any(note.startswith('* few') and '2 of the 20 validation clips' in note for note in table.notes)


def test_clips_of_another_set_stay_out_of_the_tables_of_davis(tmp_path):
  found = entries(tmp_path, mine=report_files.flat(0.9, ['astronaut']))
  assert found[0].dataset is None
  assert 'mine' not in [cells[0].text for cells in tables.table2(found).rows]
  assert 'unknown data set' in tables.unplaced(found)[0]


def test_markdown_keeps_names_as_text(tmp_path):
  text = grid.to_markdown([tables.table2(entries(tmp_path, **{'a|b <img src=x> *c*': report_files.flat(0.5)}))])
  line = next(line for line in text.splitlines() if 'img' in line)
  assert r'a\|b \<img src=x\> \*c\*' in line
  assert len(re.findall(r'(?<!\\)\|', line)) == len(re.findall(r'(?<!\\)\|', text.splitlines()[2]))


def test_html_keeps_names_as_text(tmp_path):
  text = grid.to_html(tables.table2(entries(tmp_path, **{'<img src=x>': report_files.flat(0.5)})))
  assert '&lt;img src=x&gt;' in text and '<img' not in text


@pytest.mark.parametrize(
  ('path', 'name', 'dataset'),
  [
    ('ours.json', 'ours', DAVIS),
    ('ours-davis2016.json', 'ours', DAVIS),
    ('ours_fbms59.json', 'ours', FBMS),
    ('ours.visal.json', 'ours', VISAL),
    ('visal.json', 'visal', VISAL),
    ('runs/small/evaluation/scores.json', 'small', DAVIS),
    ('small/scores.json', 'small', DAVIS),
  ],
)
def test_files_go_by_their_own_name_or_their_folder(tmp_path, path, name, dataset):
  place = tmp_path / path
  (written,) = report_files.write(place.parent, **{'x': report_files.flat(0.5)})
  written.rename(place)
  entry = read_entries([place])[0]
  assert (entry.name, entry.dataset) == (name, dataset)


def test_a_name_in_the_file_goes_before_its_own(tmp_path):
  entry = entries(tmp_path, x=report_files.flat(0.5, name='AD-Net', dataset_name='DAVIS_2016'))[0]
  assert (entry.name, entry.dataset) == ('AD-Net', DAVIS)
  with pytest.raises(DataError, match='name is no text'):
    entries(tmp_path, y=report_files.flat(0.5, name=3))


def test_two_files_of_one_name_and_rule_are_refused(tmp_path):
  first = report_files.write(tmp_path / 'a', x=report_files.flat(0.5))
  second = report_files.write(tmp_path / 'b', x=report_files.flat(0.6))
  with pytest.raises(DataError, match='two score files of one name'):
    read_entries([*first, *second])
  third = report_files.write(tmp_path / 'c', x=report_files.saliency(0.1, 0.5))
  assert len(group(read_entries([*first, *third]))) == 2


def test_what_is_no_score_file_is_refused(tmp_path):
  path = tmp_path / 'x.json'
  newer = copy.deepcopy(report_files.flat(0.5)) | {'format': 2}
  for content, message in (({'J': 0.5}, 'not a score file'), (newer, 'format 2')):
    report_files.write(tmp_path, x=content)
    with pytest.raises(DataError, match=message):
      read_entries([path])
  path.write_text('<html>')
  with pytest.raises(DataError, match='not a score file'):
    read_entries([path])


def test_remarks_name_everything_that_makes_numbers_unlike_others(tmp_path):
  scores = report_files.flat(
    0.5, ['dog', 'hen'], subset=True, missing={'dog': ['00001']}, resized={'hen': ['00002']}, threshold=0.4, ends='keep'
  )
  text = '; '.join(remarks(entries(tmp_path, x__davis=scores)[0]))
  for part in ('1 of the 20 validation clips and 1 others', 'a subset', 'dog: 00001', 'hen: 00002', '0.4', 'counted'):
    assert part in text
  assert remarks(entries(tmp_path, y=report_files.flat(0.5))[0]) == []
