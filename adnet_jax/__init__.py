"""AD-Net (anchor diffusion, ICCV 2019) in JAX: masks of the foreground object of a video."""

__version__ = '0.1.0'
