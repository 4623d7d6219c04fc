"""What the commands import before they work, and the scripts that complete them in shells."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import tiny

from adnet_jax import cli

HEAVY = ('jax', 'flax', 'optax', 'orbax', 'cv2', 'scipy', 'rich', 'numpy', 'PIL', 'av', 'absl')


def modules_after(statements: str) -> set[str]:
  """Names of the modules in a fresh interpreter after some statements."""
  script = (
    f'import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()):\n  {statements}\nprint(*sys.modules)'
  )
  run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr
  return set(run.stdout.split())


@pytest.mark.parametrize('arguments', [['--help'], ['--version'], ['segment', '--help'], ['segment', '--batch', '0']])
def test_help_and_usage_import_nothing_heavy(arguments):
  found = modules_after(f'from adnet_jax import cli; cli.main({arguments})')
  assert 'adnet_jax.segment_command' in found and not found & set(HEAVY)


def test_scoring_needs_neither_jax_nor_the_optimizers_of_scipy(tmp_path):
  for name in ('masks', 'truth'):
    tiny.write_frames(tmp_path / name / 'a', [image * 0 for image in tiny.frames(3)])
  command = ['score', str(tmp_path / 'masks'), '--truth', str(tmp_path / 'truth'), '--jobs', '1']
  found = modules_after(f'from adnet_jax import cli; assert cli.main({command}) == 0')
  assert 'adnet_jax.evaluate' in found and not found & {'jax', 'flax', 'scipy.optimize', 'matplotlib'}


def test_a_clip_that_is_not_there_is_said_before_a_network_is_built():
  found = modules_after("from adnet_jax import cli; assert cli.main(['segment', 'nowhere']) == 3")
  assert 'adnet_jax.segmenter' not in found


# ------------------------------------------------------------------------------------------------- completion


@pytest.fixture
def script(capsys):
  """Gives the script for a shell."""
  pytest.importorskip('shtab')

  def make(shell: str) -> str:
    assert cli.main(['completion', shell]) == 0
    return capsys.readouterr().out

  return make


@pytest.mark.skipif(shutil.which('bash') is None, reason='there is no bash')
@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['seg'], ['segment']),
    (['segment', '--proto'], ['--protocol']),
    (['segment', '--protocol', ''], ['paper', 'released']),
    (['completion', 'z'], ['zsh']),
  ],
)
def test_bash_completes_commands_options_and_choices(script, tmp_path, words, expected):
  (tmp_path / 'adnet').write_text(script('bash'))
  before = words[-2] if len(words) > 1 else 'adnet'
  typed = ' '.join(f"'{word}'" for word in words)
  run = subprocess.run(
    ['bash', '-c', f"source ./adnet; COMP_WORDS=(adnet {typed}); COMP_CWORD={len(words)}; "
     f"_shtab_adnet adnet '{words[-1]}' '{before}'; echo \"${{COMPREPLY[@]}}\""],
    capture_output=True, text=True, check=True, cwd=tmp_path,
  )  # fmt: skip
  assert run.stdout.split() == expected and not run.stderr


@pytest.mark.parametrize(('shell', 'text'), [('zsh', '#compdef adnet'), ('fish', 'complete -c adnet')])
def test_scripts_of_other_shells_know_every_command(script, shell, text):
  found = script(shell)
  assert text in found and all(name in found for name in ('segment', 'score', 'convert', 'doctor', '--protocol'))


def test_completion_without_its_extra(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'shtab', None)
  assert cli.main(['completion', 'bash']) == 2
  assert "pip install 'adnet-jax[completion]'" in capsys.readouterr().err
