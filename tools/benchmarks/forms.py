"""Sections `convolutions`, `attention` and `tiling`: what the choices in models/layers.py and attention.py rest on."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tools.benchmarks.measuring import Row, measure

# (channels in, channels out, dilation) of the 3x3 convolutions of a ResNet-101 at output stride 8.
CONVOLUTIONS = ((256, 256, 2), (512, 512, 4), (512, 512, 8), (512, 512, 16), (2048, 512, 12), (2048, 512, 24),
                (2048, 512, 36))  # fmt: skip
FRAMES = {'cpu': 1, 'gpu': 8, 'tpu': 8}


def _setting(options: argparse.Namespace) -> tuple[Any, str, int, tuple[int, int]]:
  """Device, dtype, frames at a time, and (h, w) of the features at output stride 8."""
  from adnet_jax import pretrained

  device = pretrained.find_devices(options.device)[0]
  dtype = options.dtype or ('float32' if device.platform == 'cpu' else 'bfloat16')
  width, height = options.size
  return device, dtype, FRAMES[device.platform], (-(-height // 8), -(-width // 8))


def _finish(call: Callable[[], Any]) -> Any:
  import jax

  return jax.block_until_ready(call())


def _times(title: str, functions: Mapping[str, Callable], arrays: tuple, flop: float, repeats: int) -> list[Row]:
  """Rows of functions of the same arrays, jitted or not, in turns; a form that the platform refuses is said."""
  import jax

  rows: list[Row] = []
  ready: dict[str, Callable[[], Any]] = {}
  for name, function in functions.items():
    call = functools.partial(function if hasattr(function, 'lower') else jax.jit(function), *arrays)
    try:
      jax.block_until_ready(call())
    except Exception as error:  # whatever a compiler says, the others are to be timed
      rows.append({'what': f'{title}: {name}: not possible here: {" ".join(str(error).split())[:100]}'})
    else:
      ready[name] = functools.partial(_finish, call)
  for name, timing in measure(ready, repeats).items():
    rows.append({**timing.row(f'{title}: {name}'), 'TFLOP/s': flop / min(timing.wall) / 1e12})
  return rows


def convolutions(options: argparse.Namespace) -> list[Row]:
  """Each form of the dilated convolutions of a ResNet-101 at the size of `model`; TFLOP/s as if nothing were padded."""
  import jax.numpy as jnp
  import numpy as np

  from adnet_jax.models import convolutions as forms

  device, dtype, frames, (height, width) = _setting(options)
  rows, rng = [], np.random.default_rng(0)
  for inputs, outputs, dilation in CONVOLUTIONS:
    if options.tiny:
      inputs, outputs = 8, 8
    x = jnp.asarray(rng.standard_normal((frames, height, width, inputs), np.float32), dtype)
    kernel = jnp.asarray(rng.standard_normal((3, 3, inputs, outputs), np.float32), dtype)
    given: dict[str, Any] = {'dilation': dilation, 'padding': ((dilation, dilation), (dilation, dilation))}
    functions = {
      'plain': functools.partial(forms.plain, stride=1, **given),
      'not dilated, for comparison': functools.partial(forms.plain, stride=1, dilation=1, padding=((1, 1), (1, 1))),
      'taps': functools.partial(forms.taps, **given),
      'space to batch': functools.partial(forms.space_to_batch, **given),
    }
    if dtype == 'float32':
      functions['Winograd'] = functools.partial(forms.winograd, **given)
    title = f'{frames} x {height} x {width}, {inputs} to {outputs}, dilation {dilation}, {dtype}'
    flop = 18.0 * x.size * outputs
    rows += _times(title, functions, (x, kernel), flop, options.repeats)
    if device.platform != 'cpu':
      gradient = jnp.asarray(rng.standard_normal((*x.shape[:3], outputs), np.float32), dtype)
      gradients = {name: _kernel_gradient(form) for name, form in functions.items() if not name.startswith('not')}
      rows += _times(f'{title}, gradient of the kernel', gradients, (x, kernel, gradient), flop, options.repeats)
  return rows + _one_by_one(options)


def _kernel_gradient(form: Callable) -> Callable:
  import jax

  return lambda x, kernel, gradient: jax.vjp(lambda kernel: form(x, kernel), kernel)[1](gradient)


def _one_by_one(options: argparse.Namespace) -> list[Row]:
  """A 1x1 convolution with bias, shortcut and ReLU, as layer3 has it last, in each form and with each compiler."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from adnet_jax.models import convolutions as forms
  from adnet_jax.models import per_frame, platforms

  device, dtype, frames, (height, width) = _setting(options)
  inputs, outputs = (8, 8) if options.tiny else (256, 1024)
  rng = np.random.default_rng(0)
  x, shortcut, kernel, bias = (
    jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    for shape in ((frames, height, width, inputs), (frames, height, width, outputs), (inputs, outputs), (outputs,))
  )

  def convolution(x, kernel):
    return forms.plain(x, kernel[None, None], stride=1, dilation=1, padding=((0, 0), (0, 0)))

  def block(form: Callable, **how: Any) -> Callable:
    return jax.jit(lambda x, shortcut, kernel, bias: jax.nn.relu(form(x, kernel) + bias + shortcut), **how)

  functions = {'product': block(per_frame.product), 'convolution': block(convolution)}
  if known := platforms.compiler_options(device.platform, 'inference'):
    functions['product, options of inference'] = block(per_frame.product, compiler_options=known)
  title = f'{frames} x {height} x {width}, {inputs} to {outputs}, 1x1, bias, shortcut, ReLU, {dtype}'
  return _times(title, functions, (x, shortcut, kernel, bias), 2.0 * x.size * outputs, options.repeats)


def attention(options: argparse.Namespace) -> list[Row]:
  """Each form of attention with both branches' queries, at the size of `model`."""
  import jax.numpy as jnp
  import numpy as np

  from adnet_jax.models import attention as forms

  device, dtype, frames, (height, width) = _setting(options)
  rng = np.random.default_rng(0)
  pixels, channels = height * width, 16 if options.tiny else 128
  queries, context = (
    jnp.asarray(rng.standard_normal((frames, n, channels), np.float32), dtype) for n in (2 * pixels, pixels)
  )
  functions: dict[str, Callable] = {'blockwise': forms.attend_blockwise}
  for block in (1024, 2048):
    functions[f'blockwise, {block} keys'] = functools.partial(forms.attend_blockwise, block=block)
  if 4 * frames * 2 * pixels**2 < 4 * 2**30:
    functions['exact'] = forms.attend_exact
  if device.platform == 'gpu':
    functions['cuDNN'] = forms.attend_cudnn
  if device.platform == 'tpu':
    functions['Pallas'] = forms.attend_tpu
  flop = 4.0 * frames * 2 * pixels * pixels * channels
  title = f'{frames} frames, {2 * pixels} queries, {pixels} keys of {channels}, {dtype}'
  return _times(title, functions, (queries, context), flop, options.repeats)


def tiling(options: argparse.Namespace) -> list[Row]:
  """How much of a TPU's matrix unit the network's shapes fill, from its program for one frame; runs nothing."""
  import jax
  import numpy as np

  from adnet_jax import pretrained, weights
  from adnet_jax.models import adnet

  architecture = adnet.Architecture(options.variant, options.backbone, options.stem, options.output_stride)
  zeros = {name: np.zeros(shape, np.float32) for name, shape in weights.shapes(architecture).items()}
  module = weights.build(architecture, zeros, dtype=jax.numpy.dtype('bfloat16'))
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ('data',))
  programs = pretrained.Programs(module, 'torchvision', 'tpu', mesh)
  width, height = options.size
  image = jax.ShapeDtypeStruct((1, height, width, 3), np.uint8)
  params = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), programs.params)
  anchor = jax.eval_shape(programs.embed, params, image) if architecture.uses_anchor else None
  products = list(matrix_products(jax.make_jaxpr(programs.predict)(params, anchor, image).jaxpr))
  real, padded = (sum(count(product) for product in products) for count in (math.prod, padded_product))
  rows: list[Row] = [{'what': 'all', 'GFLOP': 2e-9 * real, 'padded': 2e-9 * padded, 'share filled': real / padded}]
  worst: dict[tuple[int, int, int], list[int]] = {}
  for product in products:
    worst.setdefault(product, []).append(padded_product(product) - math.prod(product))
  for product, wasted in sorted(worst.items(), key=lambda item: -sum(item[1]))[:5]:
    title = f'{len(wasted)} of {" x ".join(map(str, product))} (outputs, channels in, channels out)'
    filled = math.prod(product) / padded_product(product)
    rows.append({'what': title, 'padded': 2e-9 * sum(wasted), 'share filled': filled})
  return rows


def matrix_products(jaxpr: Any) -> Iterator[tuple[int, int, int]]:
  """(outputs, channels in, channels out) of each matrix product, a convolution being one a tap; no Pallas kernels."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      continue
    if equation.primitive.name == 'conv_general_dilated':
      kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
      if equation.params['feature_group_count'] == 1:
        yield from [(math.prod(out[:3]), kernel[2], kernel[3])] * (kernel[0] * kernel[1])
    elif equation.primitive.name == 'dot_general':
      (inner, _), (batch, _) = equation.params['dimension_numbers']
      left, right = (variable.aval.shape for variable in equation.invars)
      depth, together = math.prod(left[i] for i in inner), math.prod(left[i] for i in batch)
      yield from [(math.prod(left) // depth // together, depth, math.prod(right) // depth // together)] * together
    else:
      for value in equation.params.values():
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          yield from matrix_products(inner)


def padded_product(product: tuple[int, int, int]) -> int:
  """Products with the outputs filled up to the 8 rows of a register and channels to the 128 lanes of the unit."""
  outputs, inside, out = product
  return -(-outputs // 8) * 8 * (-(-inside // 128) * 128) * (-(-out // 128) * 128)
