"""cotenant: 3D-mockup renderers, diffusion models and LLMs that share GPUs safely, on Ray."""

__version__ = "0.1.0"
