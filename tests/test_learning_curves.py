"""Learning curves: what is read of a training, and that every run and score is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools import learning_curves


def write(folder, losses, validations=None, start=0):
  folder.mkdir(exist_ok=True)
  with (folder / 'train.jsonl').open('a') as file:
    for step, loss in enumerate(losses, start):
      line = {'step': step, 'loss': loss, 'lr': 0.1, 'sample_ids': []}
      if validations and step in validations:
        line['validation'] = validations[step]
      file.write(json.dumps(line) + '\n')
  return folder


def test_steps_done_again_count_once_and_skipped_ones_not(tmp_path):
  folder = write(tmp_path / 'a', [4.0, 3.0, 9.0], {1: {'J': 0.1, 'F': None}})
  write(folder, [2.0, None, 1.0], {4: {'J': 0.5, 'F': 0.25}}, start=2)
  run = learning_curves.read_run('a', folder)
  assert run.steps.tolist() == [1, 2, 3, 5] and run.losses.tolist() == [4, 3, 2, 1]
  assert run.scores == {'J': [(2, 0.1), (5, 0.5)], 'F': [(5, 0.25)]}


def test_smoothing_is_a_mean_of_what_came_before():
  np.testing.assert_allclose(learning_curves.smoothed(np.array([4.0, 2.0, 6.0, 0.0]), 2), [4, 3, 4, 3])


def test_every_run_and_score_is_in_the_picture(tmp_path, capsys):
  pytest.importorskip('matplotlib')
  write(tmp_path / 'one', np.linspace(1, 0.1, 30).tolist(), {9: {'J': 0.2}, 29: {'J': 0.4}})
  write(tmp_path / 'two', np.linspace(1, 0.2, 20).tolist())
  out = tmp_path / 'curves.svg'
  assert learning_curves.main([str(tmp_path / 'one'), f'other={tmp_path / "two"}', '-o', str(out)]) == 0
  printed = capsys.readouterr().out
  assert 'one: 30 steps, loss 0.1' in printed and 'J 0.400' in printed and 'other: 20 steps' in printed
  panels = learning_curves.draw([learning_curves.read_run(n, tmp_path / n) for n in ('one', 'two')]).axes
  assert [len(panel.lines) for panel in panels] == [2, 1]
  assert panels[1].lines[0].get_xydata().tolist() == [[10, 0.2], [30, 0.4]]
  assert out.read_text().startswith('<?xml')


@pytest.mark.parametrize('content', [None, '', 'nothing of the kind', '{"loss": 1}'])
def test_what_is_no_training(content, tmp_path, capsys):
  if content is not None:
    (tmp_path / 'train.jsonl').write_text(content)
  assert learning_curves.main([str(tmp_path), '-o', str(tmp_path / 'c.svg')]) == 3
  assert capsys.readouterr().err.startswith('error: ') and not (tmp_path / 'c.svg').exists()
