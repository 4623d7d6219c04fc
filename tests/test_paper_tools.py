"""tools/similarity.py, ablation.py and reproduce_paper.py on a tiny model and clips of a few frames."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.numpy
import sets
import tiny

from adnet_jax import convert, images, masks, metadata, pretrained, scores, similarity, weights
from adnet_jax.models import adnet
from adnet_jax.models.adnet import VARIANTS
from tools import ablation, paper_runs, reproduce_paper
from tools import similarity as similarity_tool

FRAMES = (96, 48)
CONFIG = Path(__file__).parents[1] / 'configs' / 'compact.py'


def write_clip(root: Path, name: str, count: int, seed: int = 0) -> None:
  """A clip in DAVIS' layout: a disc that moves over noise, and where it truly is."""
  tiny.write_frames(root / 'JPEGImages' / '480p' / name, tiny.frames(count, FRAMES, seed))
  folder = root / 'Annotations' / '480p' / name
  folder.mkdir(parents=True)
  for k in range(count):
    truth = np.zeros(FRAMES[::-1], np.uint8)
    cv2.circle(truth, (int(FRAMES[0] * (0.2 + 0.6 * k / (count - 1))), FRAMES[1] // 2), FRAMES[1] // 4, 255, -1)
    cv2.imwrite(str(folder / f'{k:05d}.png'), truth)


def write_model(folder: Path, variant: str) -> Path:
  """Random weights: any masks will do here, and `tiny.write_model` compiles a program for each variant."""
  rng = np.random.default_rng(3)
  arrays = {}
  for name, shape in weights.shapes(tiny.architecture(variant)).items():
    deviation = np.sqrt(2 / np.prod(shape[:-1])) if name.endswith('kernel') else 0
    arrays[name] = np.float32(rng.normal(float(name.endswith(('scale', 'var'))), deviation, shape))
  path = folder / f'{variant}.safetensors'
  terms = ('random weights', tiny.TERMS, 'a test')
  weights.save(path, arrays, metadata.Metadata(tiny.architecture(variant), 'torchvision', tiny.SIZE, *terms))
  return path


@pytest.fixture(scope='module')
def davis(tmp_path_factory) -> Path:
  root = tmp_path_factory.mktemp('davis')
  write_clip(root, 'dog', 5)
  write_clip(root, 'camel', 4, seed=1)
  return root


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path, tiny_model, model):
  # Compiled once for all tests; only a baseline is another network.
  load = pretrained.load_model
  monkeypatch.setattr(
    pretrained, 'load_model', lambda name, **rest: load(name, **rest) if Path(name).stem[:4] == 'base' else model
  )
  monkeypatch.setenv('ADNET_COMPILATION_CACHE', '0')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / '.cache'))
  monkeypatch.setenv('ADNET_MODELS', str(tiny_model.parent))


@pytest.fixture(scope='session')
def variants(tmp_path_factory) -> dict[str, Path]:
  return {variant: write_model(tmp_path_factory.mktemp('variants'), variant) for variant in VARIANTS}


# Similarity ----------------------------------------------------------------------------------------------------------


def test_figure_3_is_the_mean_over_all_pairs(davis, model, variants, tmp_path, capsys):
  out = tmp_path / 'fig3.png'
  command = ['fig3', '--davis', davis, '--model', 'tiny', '--baseline', variants['baseline'], '-o', out]
  assert similarity_tool.main([str(part) for part in command]) == 0
  assert out.stat().st_size > 10_000 and capsys.readouterr().out.strip() == str(out)
  stored = json.loads(out.with_suffix('.json').read_text())
  assert set(stored) == {'AD-Net', 'baseline'}
  found = stored['AD-Net']['clips']['camel']
  clip = davis / 'JPEGImages' / '480p' / 'camel'
  frames = [images.read_image(path) for path in sorted(clip.iterdir())]
  x = similarity_tool.embed(model, frames)
  truth = [masks.read_mask(davis / 'Annotations' / '480p' / 'camel' / f'{k:05d}.png') for k in range(4)]
  sets = [x[k][similarity.foreground_on_grid(truth[k], x.shape[1:3])].astype(float) for k in range(4)]
  sets = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in sets]
  expected = {str(k): np.mean([1 - a @ b for a in sets[0] for b in sets[k]]) for k in (1, 2, 3)}
  assert found == pytest.approx(expected, abs=1e-5)
  dog = stored['AD-Net']['clips']['dog']
  assert stored['AD-Net']['mean'] == [
    *([k, pytest.approx((found[str(k)] + dog[str(k)]) / 2), 2] for k in (1, 2, 3)),
    [4, pytest.approx(dog['4']), 1],
  ]
  assert 0 < stored['baseline']['clips']['dog']['1'] < 2


def test_frames_without_annotation_or_foreground_are_left_out(tmp_path, model):
  write_clip(tmp_path, 'dog', 6)
  folder = tmp_path / 'Annotations' / '480p' / 'dog'
  (folder / '00002.png').unlink()
  cv2.imwrite(str(folder / '00003.png'), np.zeros(FRAMES[::-1], np.uint8))
  (tmp_path / 'JPEGImages' / '480p' / 'dog' / '00004.png').unlink()
  (clip,) = similarity_tool.read_clips(tmp_path)
  assert list(similarity_tool.clip_distances(model, clip)) == [1, 5]


@pytest.mark.parametrize('kind', ['product', 'softmax'])
def test_figures_1_and_10(kind, davis, tmp_path):
  for name, options in (('fig1', ['--points', '20,24', '90,2']), ('fig10', ['--seed', '3'])):
    out = tmp_path / f'{name}.svg'
    command = [name, '--davis', str(davis), '--model', 'tiny', '-o', str(out), '--map', kind, *options]
    assert similarity_tool.main(command) == 0
    assert '<svg' in out.read_text()


def test_figure_10_s_pixel_is_foreground_of_the_last_frame_with_an_object(tmp_path, model):
  write_clip(tmp_path, 'dog', 4)
  folder = tmp_path / 'Annotations' / '480p' / 'dog'
  cv2.imwrite(str(folder / '00003.png'), np.zeros(FRAMES[::-1], np.uint8))
  (clip,) = similarity_tool.read_clips(tmp_path)
  found = [similarity_tool.find_correspondence(model, clip, 'product', seed) for seed in (0, 0, 1, 2, 3)]
  assert {one.frame for one in found} == {'00002'}
  assert all(masks.read_mask(folder / '00002.png')[one.pixel] for one in found)
  assert found[0].pixel == found[1].pixel and len({one.pixel for one in found}) > 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['fig1', '--clips', 'cat'], 'no such clip: cat (--clips): '),
    (['fig1', '--frame', '77'], "no frame '77' (--frame): its frames are 00000 to "),
    (['fig1', '--points', '96,0'], 'outside the frame of 96x48: 96,0 (--points)'),
    (['fig3', '--baseline', 'tiny'], 'both models are AD-Net'),
  ],
)
def test_usage_errors_of_similarity(arguments, message, davis, tmp_path, capsys):
  command = [*arguments, '--davis', str(davis), '--model', 'tiny', '-o', str(tmp_path / 'out.png')]
  assert similarity_tool.main(command) == 2
  assert message in capsys.readouterr().err and not (tmp_path / 'out.png').exists()


# Ablation ------------------------------------------------------------------------------------------------------------


def test_ablation_of_given_models(davis, variants, tmp_path, capsys):
  files = [str(variants[variant]) for variant in ('full', 'anchor', 'intra_frame')]
  out = tmp_path / 'out'
  assert ablation.main(['--models', *files, '--davis', str(davis), '-o', str(out)]) == 0
  text = capsys.readouterr().out
  assert (out / 'table1.md').read_text() == text
  rows = {line.split('|')[1].strip(): line.split('|')[2:] for line in text.splitlines() if line.startswith('|')}
  full = json.loads((out / 'full.json').read_text())['dataset']
  assert rows['AD-Net (single scale)'][0].strip() == '78.26'
  assert rows['AD-Net (single scale)'][1].strip() == f'{100 * full["J"]["mean"]:.2f}\\*'  # two clips, not twenty
  assert rows['Baseline'][1].strip() == rows['AD-Net (single scale)'][3].strip() == 'not measured'
  assert sorted(path.name for path in out.glob('*.json')) == ['anchor.json', 'full.json', 'intra_frame.json']


def test_ablation_trains_every_variant_alike(davis, tmp_path, monkeypatch, capsys):
  from adnet_jax import config as config_lib
  from adnet_jax import train

  seen = []

  def instead(config, folder, progress, validate=None):
    assert validate is None  # the last step is scored, on clips that chose nothing
    seen.append((folder.name, folder.parent.name, json.loads(config_lib.to_json(config))))
    (folder / 'final.safetensors').touch()

  monkeypatch.setattr(train, 'train', instead)
  keys = {'data.root': davis, 'data.stills_fraction': 0, 'steps': 7, 'evaluate.size': '129x65'}
  command = ['--config', str(CONFIG), '--workdir', str(tmp_path), '--seeds', '0,5']
  command += [f'--config.{key}={value}' for key, value in keys.items()]
  assert ablation.main(command) == 0
  names = [*VARIANTS, 'both_frames_random']
  assert [one[:2] for one in seen] == [(name, f'seed-{seed}') for seed in (0, 5) for name in names]
  for name, folder, config in seen:
    expected = (name, 'first') if name in VARIANTS else ('full', 'random')
    assert (config['model.variant'], config['data.anchor']) == expected
    assert (f'seed-{config["seed"]}', config['steps']) == (folder, 7)
    apart = {'model.variant', 'data.anchor', 'seed'}
    assert {k: v for k, v in config.items() if k not in apart} == {
      k: v for k, v in seen[0][2].items() if k not in apart
    }
  text = (tmp_path / 'table1.md').read_text()
  assert 'seed 0' in text and 'seed 5' in text and 'Over the seeds 0, 5' in text
  assert '| Both frames random | \N{EN DASH} |' in text and '| both\\_frames\\_random |' in text
  assert all((tmp_path / 'seed-5' / f'{name}.json').exists() for name in names)
  assert ablation.main(command) == 2
  assert '--overwrite or --resume' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'give either model files or a configuration'),
    (['--models', 'tiny'], 'where is the data set'),
    (['--models', 'tiny', 'tiny', '--davis', '.', '-o', 'out'], 'two files of the variant full'),
    (['--config', str(CONFIG)], 'no folder to train into'),
  ],
)
def test_usage_errors_of_ablation(arguments, message, capsys):
  assert ablation.main(arguments) == 2
  assert message in capsys.readouterr().err


# The paper again -----------------------------------------------------------------------------------------------------


def released_state(variant: str) -> dict[str, np.ndarray]:
  """Random arrays under a released file's names, of a small network."""
  rng = np.random.default_rng(7)
  auxiliary = 1 if variant == 'baseline' else 4
  shape = adnet.Architecture(variant, 'resnet18', 'conv7x7', aspp_width=8, embedding=4, auxiliary=auxiliary)
  if variant == 'baseline':  # which has no embedding to tell
    shape = dataclasses.replace(shape, embedding=adnet.Architecture.embedding)
  arrays, state = weights.shapes(shape), {}
  for name, source in convert.released_sources(shape).items():
    kh, kw, inputs, outputs = arrays[f'{name}/kernel']
    for theirs in source.names():
      kernel = theirs == f'{source.conv}.weight'
      state[theirs] = rng.standard_normal((outputs, inputs, kh, kw) if kernel else outputs, np.float32)
      if theirs.endswith('running_var'):
        state[theirs] = np.abs(state[theirs]) + 1
  return state


@pytest.fixture(scope='module')
def released(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('released')
  for name, variant in convert.RELEASED.items():
    safetensors.numpy.save_file(released_state(variant), folder / f'{name}.safetensors', {'format': 'pt'})
  return folder


def rows_of(path: Path) -> dict[str, dict[str, dict[str, str]]]:
  """{table: {row: {column: cell}}} of tables.md."""
  found: dict[str, dict[str, dict[str, str]]] = {}
  for line in path.read_text().splitlines():
    if line.startswith('### '):
      rows = found.setdefault(line[4:].split('.')[0], {})
      header = None
    elif line.startswith('| ') and '---' not in line:
      cells = [cell.strip().replace('\\', '') for cell in line.strip('|').split('|')]
      header = header or cells
      rows[cells[0]] = dict(zip(header, cells))
  return found


def test_released_files_become_tables_1_2_and_4(released, davis, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(paper_runs, 'MULTI_SCALE', (1.0,))  # each scale compiles another program
  monkeypatch.setattr(reproduce_paper, 'draw', lambda *_: None)
  out = tmp_path / 'out'
  command = ['--released', released, '--davis', davis, '-o', out, '--size', '65x33', '--clips', 'dog,camel']
  assert reproduce_paper.main([str(part) for part in command]) == 0
  said = capsys.readouterr().out
  for label, printed, measured in (
    (r'AD-Net \(single scale\)', '78.26 / 77.11', r'\d+\.\d\d / \d+\.\d\d'),
    (r'AD-Net \(multiple scales\)', '79.4 / 78.2', r'\d+\.\d\d / \d+\.\d\d'),
    (r'AD-Net \+ instance pruning', '81.7 / 80.5', 'not measured'),
  ):
    assert re.search(rf'{label} +{printed} +{measured}', said), said
  found = rows_of(out / 'tables.md')
  first = found['Table 1']
  assert list(first)[1:] == [
    'Baseline', 'Baseline + intra-frame', 'Baseline + anchor', 'Baseline + anchor-diffusion', 'AD-Net (single scale)',
  ]  # fmt: skip
  for row in list(first.values())[1:]:
    assert row['J measured'].endswith('*') and row['F over baseline measured'] != 'not measured'
  multi = json.loads((out / 'scores' / 'ad-multiscale-davis2016.json').read_text())
  assert (
    multi['dataset_name'] == 'DAVIS-2016'
    and multi['warnings'][-1] == 'a subset: only these clips were asked for: dog, camel'
  )
  j = f'{100 * multi["dataset"]["J"]["mean"]:.1f}*'
  assert found['Table 2']['AD-Net (multiple scales)']['DAVIS J measured'] == j
  assert found['Table 2']['AD-Net + instance pruning']['DAVIS J measured'] == 'not measured'
  assert found['Table 4']['AD-Net multiscale']['J mean measured'] == j
  assert len(list((out / 'masks' / 'davis' / 'intra').rglob('*.png'))) == 9
  assert not (out / 'heatmaps' / 'davis' / 'intra').exists()
  for name, variant in convert.RELEASED.items():
    assert weights.load(out / 'models' / f'{name}.safetensors')[1].architecture.variant == variant


def test_released_pth_files(tmp_path):
  torch = pytest.importorskip('torch')
  state = {f'module.{name}': torch.from_numpy(array) for name, array in released_state('full').items()}
  torch.save({'state_dict': state}, tmp_path / 'ad.pth')
  (run, multi) = paper_runs.released_runs(tmp_path, tmp_path / 'out', multi_scale=True)
  assert weights.load(run.model)[1].architecture.variant == 'full' and run.model == multi.model
  assert (multi.scales, multi.mirror) == ((0.75, 1.0, 1.5), True)
  written = run.model.stat().st_mtime_ns
  paper_runs.released_runs(tmp_path, tmp_path / 'out', multi_scale=False)
  assert run.model.stat().st_mtime_ns == written  # nothing is converted again


def write_detections(path: Path, davis: Path) -> Path:
  """The true object of every frame as a detection."""
  mask_tools = pytest.importorskip('pycocotools.mask')
  pictures, found = [], []
  for clip in ('dog', 'camel'):
    for file in sorted((davis / 'Annotations' / '480p' / clip).iterdir()):
      number, mask = len(pictures), masks.read_mask(file)
      code = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
      box = [float(value) for value in mask_tools.toBbox(code)]
      size = {'width': FRAMES[0], 'height': FRAMES[1]}
      pictures.append({'id': number, 'file_name': f'{clip}/{file.stem}.jpg', **size})
      segmentation = {'size': [FRAMES[1], FRAMES[0]], 'counts': code['counts'].decode()}
      found.append({'id': number, 'image_id': number, 'category_id': 1, 'bbox': box, 'score': 0.9})
      found[-1]['segmentation'] = segmentation
  path.write_text(json.dumps({'images': pictures, 'annotations': found}))
  return path


def test_a_model_of_ours_with_everything(davis, variants, tmp_path, capsys):
  from adnet_jax import evaluate

  out, others = tmp_path / 'out', tmp_path / 'motadapt.json'
  truth = davis / 'Annotations' / '480p'
  scores.write_scores(evaluate.score_masks(truth, truth), others)
  command = ['--davis', davis, '-o', out, '--model', 'tiny', '--baseline', variants['baseline'], '--size', '65x33']
  command += ['--others', f'MotAdapt={others}', '--detections', write_detections(tmp_path / 'coco.json', davis)]
  command = [str(part) for part in command]
  assert reproduce_paper.main(command) == 0
  said = capsys.readouterr()
  drawn = {path.stem for path in (out / 'figures').glob('*.png')}
  assert drawn == {f'fig{number}' for number in (1, 3, 4, 5, 6, 7, 10)}
  assert 'fig8: not measured, no --fbms' in said.err and 'fig9: not measured, no --visal' in said.err
  assert set(json.loads((out / 'figures' / 'fig3.json').read_text())) == {'AD-Net', 'baseline'}
  heat = cv2.imread(str(out / 'heatmaps' / 'davis' / 'full' / 'dog' / '00003.png'), cv2.IMREAD_UNCHANGED)
  assert heat.dtype == np.uint16 and heat.shape == FRAMES[::-1]
  own = json.loads((out / 'scores' / 'full-davis2016.json').read_text())
  assert set(own['dataset']) == {'J', 'F', 'T'} and own['protocol'] == 'paper'
  again = evaluate.score_masks(out / 'masks' / 'davis' / 'full', truth, clips=['camel', 'dog'])
  assert again['dataset']['J'] == own['dataset']['J']
  assert 'curve' in json.loads((out / 'scores' / 'full-adnet-saliency.json').read_text())['dataset']
  found = rows_of(out / 'tables.md')
  assert found['Table 1']['AD-Net (single scale)']['J over baseline measured'] != 'not measured'
  assert found['Table 3']['AD-Net (single scale)']['DAVIS-2016 MAE measured'].endswith('*')
  assert found['Table 2']['MotAdapt']['DAVIS J measured'] == '100.0*'
  pruned = json.loads((out / 'scores' / 'full-pruned-davis2016.json').read_text())['dataset']['J']['mean']
  assert found['Table 4']['AD-Net']['J mean measured'] == f'{100 * pruned:.1f}*'
  page = (out / 'report.html').read_text()
  assert 'AD-Net pruned' in page and 'data:image' in page

  # Refused without a word what to do, and nothing made again with --resume.
  assert reproduce_paper.main(command) == 2
  assert '--overwrite or --resume' in capsys.readouterr().err
  kept = {
    path: path.stat().st_mtime_ns for kind in ('masks', 'heatmaps') for path in (out / kind).rglob('full/*/*.png')
  }
  (gone,) = (path for path in kept if path.parts[-5:] == ('masks', 'davis', 'full', 'dog', '00004.png'))
  gone.unlink()
  score = out / 'scores' / 'baseline-davis2016.json'
  scored = score.stat().st_mtime_ns
  assert reproduce_paper.main([*command, '--resume']) == 0
  remade = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
  assert remade == {gone, Path(str(gone).replace('/masks/', '/heatmaps/'))}
  assert score.stat().st_mtime_ns == scored
  assert reproduce_paper.main([*command, '--resume', '--protocol', 'released']) == 2
  assert 'begun with another protocol' in capsys.readouterr().err


def test_fbms_and_visal_fill_their_columns(davis, tmp_path, capsys):
  fbms, visal, out = tmp_path / 'fbms', tmp_path / 'visal', tmp_path / 'out'
  sets.write_fbms(fbms / 'marple4', labelled=(0, 2, 4, 6), total=9)
  sets.write_visal(visal, frames=16)
  command = ['--davis', davis, '-o', out, '--model', 'tiny', '--size', '65x33', '--clips', 'camel']
  command = [str(part) for part in (*command, '--fbms', fbms, '--visal', visal)]
  assert reproduce_paper.main(command) == 0
  drawn = {path.stem for path in (out / 'figures').glob('*.png')}
  assert {'fig8', 'fig9'} <= drawn
  found = rows_of(out / 'tables.md')
  own = 'AD-Net (single scale)'
  assert re.fullmatch(r'\d+\.\d\*', found['Table 2'][own]['FBMS F fbms-pooled'])  # one of thirty sequences
  for column in ('FBMS F measured', 'ViSal MAE measured'):
    assert found['Table 3'][own][column].endswith('*'), column
  predicted = sorted(path.stem for path in (out / 'masks' / 'fbms' / 'full' / 'marple4').iterdir())
  assert predicted == [f'marple4_{k:02d}' for k in (1, 3, 5, 7)]  # no others count, and no gate looks at them
  assert 'test clips that are not there: camel01, cars1' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--released', 'nowhere'], 'folder of released files not found'),
    (['--released', '.'], 'none of the released files is there'),
    (['--model', 'tiny', '--baseline', 'tiny'], 'not a baseline beside another variant'),
    (['--clips', 'cat'], 'no such clip: cat'),
    (['--resume', '--overwrite'], 'exclude each other'),
    (['--others', 'AD-Net pruned=scores.json'], 'the name of a row of ours'),
  ],
)
def test_usage_errors_of_reproduce_paper(arguments, message, davis, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  scores.write_scores({'format': 1, 'rule': 'davis2016', 'protocol': None, 'dataset': {}, 'clips': {}}, 'scores.json')
  assert reproduce_paper.main([*arguments, '--davis', str(davis), '-o', 'out']) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.glob('out/*'))
