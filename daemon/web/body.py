"""The body of a request, bounded in bytes and in time."""

import asyncio

from starlette.requests import Request


class TooLargeError(Exception):
    """More bytes than are taken."""


async def read_body(request: Request, limit: int, within_s: float) -> bytes:
    """All of it, never reading more than a piece over `limit` bytes.

    Raises TooLargeError, TimeoutError after `within_s`, and ClientDisconnect.
    """
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError
    body = bytearray()
    async with asyncio.timeout(within_s):
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise TooLargeError
    return bytes(body)
