"""A rehearsal of tools/benchmark.py at the smallest sizes: every section, its table and its JSON file."""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pytest

from tools import benchmark
from tools.benchmarks import measuring, model, oracle


def run(tmp_path, *arguments):
  report = tmp_path / 'report.json'
  assert benchmark.main([*map(str, arguments), '--tiny', '--json', str(report)]) == 0
  return json.loads(report.read_text())


def test_model_without_the_oracle(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(oracle, 'build', lambda *_: (None, 'torch is not installed'))
  report = run(tmp_path, 'model', '--variant', 'baseline')
  ours, product, theirs = report['sections']['model']
  assert ours['what'] == 'baseline resnet10 65x33: ours, float32' and ours['best s'] > 0
  assert ours['of product'] == pytest.approx(ours['TFLOP/s'] / product['TFLOP/s'])
  assert theirs == {'what': 'PyTorch: not measured, torch is not installed'}
  assert 'not measured' in capsys.readouterr().out


def test_model_and_oracle_compute_the_same(tmp_path):
  pytest.importorskip('torch')
  rows = run(tmp_path, 'model', '--oracle', 'eager', 'channels-last', '--frames-at-a-time', 2)['sections']['model']
  assert [row['what'].split(': ')[-1] for row in rows[:3]] == [
    'ours, float32', 'PyTorch eager, float32', 'PyTorch channels-last, float32',
  ]  # fmt: skip
  assert rows[4]['best s'] == pytest.approx(rows[0]['best s'] / rows[1]['best s'])
  assert float(rows[-1]['what'].split(': ')[1].split()[0]) < 1e-4


def test_operations_are_those_of_the_definition():
  options = argparse.Namespace(
    variant='full', backbone='resnet18', stem='conv7x7', output_stride=8, size=(65, 33), device='cpu'
  )
  module, metadata = oracle.network(options, None, 'float32')
  embedding, frames = np.zeros((1, 5, 9, 128), np.float32), np.zeros((1, 33, 65, 3), np.uint8)
  one = model._flop(module, metadata.normalization, embedding, frames)
  two = model._flop(module, metadata.normalization, np.repeat(embedding, 2, 0), np.repeat(frames, 2, 0))
  # The ASPP's three dilated convolutions alone, without the rest of the network, at 5 x 9 pixels.
  assert 3 * 2 * 9 * 512 * 512 * 45 * 0.3 < one < 1e10 and two == pytest.approx(2 * one, rel=0.1)


def test_everything_else(tmp_path, tiny_model):
  report = run(tmp_path, 'end-to-end', 'train-step', 'input', 'metrics', '--model', tiny_model, '--oracle')
  assert report['machine']['cores'] >= 1 and 'jax' in report['versions'] and '--tiny' in report['command']
  rows = {row['what'].split(': ')[-1].strip(): row for row in report['sections']['end-to-end']}
  assert rows['ours']['fps'] > 0 and rows['ours']['what'].startswith('3 frames, network at 65x33')
  assert {'network', 'read', 'a plain loop of ours', 'reading alone'} <= set(rows)
  assert any(what.startswith('limited by ') for what in rows)
  ratio = rows['ratio, ours to a plain loop of ours']['best s']
  assert ratio == pytest.approx(rows['ours']['best s'] / rows['a plain loop of ours']['best s'])
  (step,) = report['sections']['train-step']
  assert step['images/s'] == pytest.approx(4 / step['best s']) and step['of peak'] > 0
  assert report['sections']['input'][0]['what'].startswith('pairs of 33, ')
  assert [row['what'][0] for row in report['sections']['metrics']] == ['J', 'F', 'T', 's']


def test_a_training_step_of_the_oracle(tmp_path):
  pytest.importorskip('torch')
  ours, theirs, ratio = run(tmp_path, 'train-step')['sections']['train-step']
  assert theirs['what'] == 'PyTorch eager' and ratio['best s'] == pytest.approx(ours['best s'] / theirs['best s'])


def test_trade_offs(tmp_path, tiny_model):
  rows = run(tmp_path, 'trade-offs', '--models', tiny_model, '--sizes', '65x33', '--step', 2)['sections']['trade-offs']
  title, own, size, stride, *still = rows
  assert title['what'].startswith('1 clips, every 2th frame') and own['what'] == 'tiny, 129x65'
  assert own['J change'] == 0 and 0 <= own['J'] <= 1 and size['J change'] == pytest.approx(size['J'] - own['J'])
  assert size['what'] == 'tiny, 65x33' and 'output stride' in stride['what']
  assert len(still) == 4 and all(0 <= row['reused'] <= 1 for row in still)


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
  assert benchmark.main(['modle']) == 2
  assert 'expected some of model, end-to-end, train-step, input, metrics, trade-offs, convol' in capsys.readouterr().err
