"""What `/openapi.json` says of bodies that the app passes on unparsed, and of the key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_MODEL = {"type": "string", "description": "A name that GET /v1/models lists."}
_STREAM = {"type": "boolean", "default": False, "description": "Answer with server-sent events."}
_ARTWORK = {"type": "string", "description": "PNG, JPEG or WebP up to 20 MB: base64, a data URL or an http(s) URL."}
_MOCKUP = {
    "template": {"type": "string", "description": "A name that GET /v1/mockups/templates lists."},
    "fit": {"type": "string", "enum": ["cover", "contain", "stretch"]},
    "size": {
        "oneOf": [{"type": "integer"}, {"type": "string"}],
        "description": 'Side of a square render in pixels, or "WIDTHxHEIGHT".',
    },
    "width": {"type": "integer", "description": "Pixels; needs height."},
    "height": {"type": "integer", "description": "Pixels; needs width."},
    "samples": {"type": "integer", "description": "Light paths per pixel: less noise for more time."},
    "seed": {"type": "integer", "description": "The same request with the same seed gives the same bytes."},
    "background": {"type": "string", "description": '"#rgb", "#rrggbb" or "transparent".'},
    "format": {"type": "string", "enum": ["png", "webp", "jpeg"]},
    "quality": {"type": "integer", "description": "1 to 100, for jpeg and webp."},
}

_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "messages"],
                "properties": {
                    "model": _MODEL,
                    "messages": {"type": "array", "items": {"type": "object"}},
                    "stream": _STREAM,
                },
                "description": "OpenAI's chat completion request; vLLM's further fields are passed on too.",
            }
        }
    },
    "/v1/completions": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "prompt"],
                "properties": {"model": _MODEL, "prompt": {"type": "string"}, "stream": _STREAM},
                "description": "OpenAI's completion request; vLLM's further fields are passed on too.",
            }
        }
    },
    "/v1/mockups": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["template", "artwork"],
                "properties": {**_MOCKUP, "artwork": _ARTWORK},
            }
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["template", "artwork"],
                "properties": {**_MOCKUP, "artwork": {"type": "string", "format": "binary"}},
            }
        },
    },
}


def operation(url: str) -> dict[str, Any]:
    """Keywords of `add_api_route` for a route whose body is passed on."""
    tag = "mockups" if url.startswith("/v1/mockups") else "language models"
    return {"tags": [tag], "openapi_extra": {"requestBody": {"required": True, "content": _BODIES[url]}}}


def install(app: FastAPI) -> None:
    """Let the app's description tell of the key, once it is first asked for."""
    generate = app.openapi

    def described() -> dict[str, Any]:
        schema = generate()
        schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
        if not schemes:
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "Your API key."}
            schema["security"] = [{"key": []}]
        return schema

    app.openapi = described  # type: ignore[method-assign]
