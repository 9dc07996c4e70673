"""Requests from outside as JSON: how large, how deep and how odd they may be, decided before they are parsed."""

import json
import re
from typing import Any

from config.errors import CommandError
from connectors.requests import MAX_BASE64

MAX_STRUCTURE_BYTES = 64 << 10
"""Most bytes that are not inside of texts: it bounds what parsing makes of them."""
MAX_BYTES = MAX_BASE64 + MAX_STRUCTURE_BYTES
MAX_DEPTH = 8
# Possessive, so that neither time nor memory grows with anything but the length.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)


def parse_request(payload: bytes) -> dict[str, Any]:
    """The JSON object in a payload; an empty payload is an empty object.

    Raises CommandError (too_large, malformed).
    """
    if len(payload) > MAX_BYTES:
        raise CommandError("too_large", f"a request of {len(payload)} bytes, at most {MAX_BYTES}")
    if not payload.strip():
        return {}
    _check_structure(payload)
    try:
        document = json.loads(payload.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise CommandError("malformed", f"not UTF-8 text (byte {error.start}). Send JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise CommandError("malformed", f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CommandError("malformed", f"expected a JSON object, got {type(document).__name__}")
    return document


def _check_structure(payload: bytes) -> None:
    depth, inside = 0, 0
    for token in _TOKEN.finditer(payload):
        first = payload[token.start()]
        if first == 0x22:  # a quoted text
            inside += token.end() - token.start()
        elif first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise CommandError("malformed", f"nested deeper than {MAX_DEPTH} levels")
        else:
            depth -= 1
    if len(payload) - inside > MAX_STRUCTURE_BYTES:
        raise CommandError("too_large", f"over {MAX_STRUCTURE_BYTES} bytes outside of texts")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a field is there twice")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
