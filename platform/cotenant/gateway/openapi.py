"""What `/openapi.json` says of bodies that the app passes on unparsed, and of the key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from cotenant.gateway.desk_openapi import SCHEMAS

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
_IMAGES = {
    "model": _MODEL,
    "prompt": {"type": "string", "description": "What to draw."},
    "n": {"type": "integer", "minimum": 1, "maximum": 10, "description": "Pictures, with seeds seed, seed + 1, …."},
    "size": {"type": "string", "description": '"WIDTHxHEIGHT", or "auto" for the model\'s own.'},
    "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
    "output_compression": {"type": "integer", "description": "0 to 100 (best), for jpeg and webp."},
    "seed": {"type": "integer", "description": "The same request with the same seed gives the same bytes."},
    "steps": {"type": "integer", "description": "Denoising steps."},
    "guidance": {"type": "number", "description": "How closely the prompt is followed."},
    "negative_prompt": {"type": "string", "description": "What not to draw."},
}
_EDIT = {
    "strength": {"type": "number", "description": "How far the picture may go from the image: above 0, up to 1."},
}
_REFERENCE = "PNG, JPEG or WebP up to 20 MB: base64, a data URL, an http(s) URL, or {image_url: one of these URLs}."
_MASK = "Transparent where the image is edited; without an alpha channel, white on black. As large as the image."

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
    "/v1/images/generations": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "prompt"],
                "properties": _IMAGES,
                "description": "OpenAI's image request, with seed, steps, guidance and negative_prompt beside it.",
            }
        }
    },
    "/v1/images/edits": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "prompt", "image"],
                "properties": {
                    **_IMAGES,
                    **_EDIT,
                    "image": {"description": f"{_REFERENCE} Or a list of these."},
                    "mask": {"description": f"{_REFERENCE} {_MASK}"},
                },
            }
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["model", "prompt", "image"],
                "properties": {
                    **_IMAGES,
                    **_EDIT,
                    "image": {"type": "string", "format": "binary", "description": "Several go by the name image[]."},
                    "mask": {"type": "string", "format": "binary", "description": _MASK},
                },
            }
        },
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
    tag = {"mockups": "mockups", "images": "images"}.get(url.split("/")[2], "language models")
    return {"tags": [tag], "openapi_extra": {"requestBody": {"required": True, "content": _BODIES[url]}}}


def install(app: FastAPI) -> None:
    """Let the app's description tell of the key, once it is first asked for."""
    generate = app.openapi

    def described() -> dict[str, Any]:
        schema = generate()
        components = schema.setdefault("components", {})
        schemes = components.setdefault("securitySchemes", {})
        if not schemes:
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "Your API key."}
            schema["security"] = [{"key": []}]
            if "/v1/jobs" in schema["paths"]:
                components.setdefault("schemas", {}).update(SCHEMAS)
        return schema

    app.openapi = described  # type: ignore[method-assign]
