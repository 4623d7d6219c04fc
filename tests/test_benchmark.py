"""A rehearsal of tools/benchmark.py at the smallest sizes: every section, its table and its JSON file."""

from __future__ import annotations

import json
import time

import pytest

from tools import benchmark
from tools.benchmarks import measuring, oracle


def run(tmp_path, *arguments):
  report = tmp_path / 'report.json'
  assert benchmark.main([*map(str, arguments), '--tiny', '--json', str(report)]) == 0
  return json.loads(report.read_text())


def test_model_without_the_oracle(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(oracle, 'build', lambda *_: (None, 'torch is not installed'))
  report = run(tmp_path, 'model', '--variant', 'baseline')
  ours, theirs = report['sections']['model']
  assert ours['what'] == 'baseline resnet18 65x33: ours, float32' and ours['best s'] > 0
  assert theirs == {'what': 'PyTorch: not measured, torch is not installed'}
  assert 'not measured' in capsys.readouterr().out


def test_model_and_oracle_compute_the_same(tmp_path):
  pytest.importorskip('torch')
  rows = run(tmp_path, 'model')['sections']['model']
  assert [row['what'].split(': ')[-1] for row in rows[:2]] == ['ours, float32', 'PyTorch, float32']
  assert rows[2]['best s'] == pytest.approx(rows[0]['best s'] / rows[1]['best s'])
  assert float(rows[3]['what'].split(': ')[1].split()[0]) < 1e-4


def test_everything_else(tmp_path, tiny_model):
  report = run(tmp_path, 'end-to-end', 'train-step', 'input', '--model', tiny_model, '--step-seconds', 1)
  assert report['machine']['cores'] >= 1 and 'jax' in report['versions'] and '--tiny' in report['command']
  clip, *stages = report['sections']['end-to-end']
  assert clip['what'].startswith('3 frames, network at 65x33') and clip['fps'] > 0
  assert {'network', 'read'} <= {row['what'].strip() for row in stages}
  (step,) = report['sections']['train-step']
  assert step['images/s'] == pytest.approx(4 / step['best s'])
  rows = report['sections']['input']
  assert rows[0]['what'] == 'pairs of 33, decoded each time, 1 worker' and rows[0]['pairs/s'] > 0


@pytest.mark.parametrize(('seconds', 'limits'), [(1e-4, 'the input limits'), (100, 'the step limits')])
def test_input_says_what_the_step_needs_and_which_limits(tmp_path, seconds, limits):
  rows = run(tmp_path, 'input', '--step-seconds', seconds)['sections']['input']
  (need,) = (row for row in rows if row['what'].startswith('needed: 2 pairs every'))
  assert need['pairs/s'] == pytest.approx(2 / seconds)
  verdicts = rows[rows.index(need) + 1 :]
  assert len(verdicts) == 2 and all(limits in row['what'] for row in verdicts)


def test_forms_of_convolutions_and_attention(tmp_path):
  sections = run(tmp_path, 'convolutions', 'attention', 'tiling')['sections']
  assert all('not possible' not in row['what'] for section in sections.values() for row in section)
  assert {row['what'].split(': ')[-1] for row in sections['convolutions']} >= {'plain', 'taps', 'Winograd'}
  assert all(row['TFLOP/s'] > 0 for row in sections['attention'])
  assert 0 < sections['tiling'][0]['share filled'] < 1


def test_a_model_that_is_not_there_is_said(tmp_path):
  (row,) = run(tmp_path, 'end-to-end', '--model', tmp_path / 'none.safetensors')['sections']['end-to-end']
  assert row['what'].startswith('not measured: ')


def test_measurements_take_turns_after_one_call_each():
  calls = []
  timings = measuring.measure({name: lambda name=name: calls.append(name) or time.sleep(0.001) for name in 'ab'}, 3)
  assert ''.join(calls) == 'ab' * 4
  assert len(timings['a'].wall) == len(timings['b'].cpu) == 3 and min(timings['a'].wall) >= 0.001


def test_table_aligns_rows_with_other_columns():
  text = measuring.table(
    [{'what': 'one', 'fps': 2.0}, {'what': 'three', 's': 0.12345}, {'what': 'a line without numbers'}]
  )
  assert text.splitlines() == [
    '              fps           s',
    'one             2',
    'three                  0.1235',
    'a line without numbers',
  ]


def test_unknown_section(capsys):
  with pytest.raises(SystemExit):
    benchmark.main(['modle'])
  assert (
    'expected some of model, end-to-end, train-step, input, convolutions, attention, tiling' in capsys.readouterr().err
  )
