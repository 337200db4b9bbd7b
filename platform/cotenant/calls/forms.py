"""How a form and a JSON body stand for each other: the gateway reads one, who calls another gateway writes one."""

from __future__ import annotations

#: Form fields that stay text though they may look like a number or JSON.
TEXT_FIELDS = frozenset(
    {
        *("template", "artwork", "fit", "format", "background"),
        *("model", "prompt", "negative_prompt", "user", "safety_identifier", "quality", "style", "moderation"),
        *("output_format", "response_format", "input_fidelity"),
    }
)
#: What a field's name ends with whose values form a list, as the OpenAI client sends several images.
LIST_SUFFIX = "[]"
#: A body refers to an upload by its name: `{"file": NAME}`.
FILE_KEY = "file"
