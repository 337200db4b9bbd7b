"""How much work a call asks for, in a unit that its time grows with: pixels times samples, steps, tokens.

A hint, not a bill: scaling learns from calls that ended how long a unit takes. Pure, and forgiving: a body that says
nothing, or nonsense, costs what one with the defaults does, and is refused elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotenant.config.model import Kind

#: What a request means that does not say: an engine's own defaults may differ, but then they do so for each call.
_SIDE_PX, _SAMPLES, _STEPS, _TOKENS = 512, 32, 20, 256
#: A prompt's token is made so much faster than an answer's: prompts are read many tokens at a time.
_PROMPT_TOKEN = 0.02
#: Characters of a token, as English text has them.
_TOKEN_CHARS = 4
#: More than this is nonsense, which engines refuse.
_MOST_SIDE_PX, _MOST_SAMPLES, _MOST_STEPS, _MOST_ANSWERS, _MOST_TOKENS = 16_384, 65_536, 500, 10, 1_000_000


def units_of(kind: Kind, body: Mapping[str, Any]) -> float:
    """The cost of a request with that body: mega-pixel samples of a mockup, mega-pixel steps of an image, tokens of
    an answer (those of the prompt count as little as they take)."""
    if kind == "llm":
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        answers = _number(body.get("n"), 1, _MOST_ANSWERS)
        return _number(most, _TOKENS, _MOST_TOKENS) * answers + _PROMPT_TOKEN * _prompt_chars(body) / _TOKEN_CHARS
    if kind == "image":
        return (
            _pixels(body)
            / 1e6
            * _number(body.get("steps"), _STEPS, _MOST_STEPS)
            * _number(body.get("n"), 1, _MOST_ANSWERS)
        )
    return _pixels(body) / 1e6 * _number(body.get("samples"), _SAMPLES, _MOST_SAMPLES)


def _pixels(body: Mapping[str, Any]) -> float:
    size = body.get("size")
    width, height = body.get("width"), body.get("height")
    if isinstance(size, str):
        width, _, height = size.lower().partition("x")
        height = height or width
    elif size is not None:
        width = height = size
    return _number(width, _SIDE_PX, _MOST_SIDE_PX) * _number(height, _SIDE_PX, _MOST_SIDE_PX)


def _prompt_chars(body: Mapping[str, Any]) -> int:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return len(prompt)
    messages = body.get("messages")
    if not isinstance(messages, list):
        return 0
    texts = (one.get("content") for one in messages if isinstance(one, Mapping))
    return sum(len(text) for text in texts if isinstance(text, str))


def _number(value: Any, otherwise: float, most: float) -> float:
    if isinstance(value, str) and value.isdecimal() and len(value) <= 9:  # a form's field
        value = int(value)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= most
    return float(value) if good else float(otherwise)
