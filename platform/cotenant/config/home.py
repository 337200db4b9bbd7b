"""Where this machine keeps what the platform makes: converted models, tokens, records of what runs, logs."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path


def home() -> Path:
    """`$COTENANT_HOME`, by default `~/.cache/cotenant`, as an absolute path; it need not exist yet."""
    return Path(os.environ.get("COTENANT_HOME") or "~/.cache/cotenant").expanduser().absolute()


def cache(name: str) -> Path:
    """A folder under `home` for what can be made again at any time: it may be emptied whenever nothing starts."""
    return home() / "cache" / name


#: Variables by which compilers are told where to keep what they made. By default that is the user's home or a temporary
#: folder, which a container forgets.
_COMPILED = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def keep_compiled(environment: MutableMapping[str, str]) -> None:
    """Have torch, Triton and vLLM keep what they compile under `home`, unless the environment says where."""
    for variable, name in _COMPILED.items():
        environment.setdefault(variable, str(cache(name)))
