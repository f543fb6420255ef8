"""Answers in JSON, of results and of errors."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

STATUS = {KeyError: 404, IndexError: 404, ValueError: 400, TypeError: 400}  # of errors of the caller
# Starlette asks for a handler by the error's class, and takes those of subclasses from their base.
HANDLED = (HTTPException, ClientDisconnect, ValueError, TypeError, LookupError, Exception)
MAX_FAULTS = 10  # of a request that an answer names


def answer(content: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    """JSON; arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def refuse(_: Request, error: Exception) -> Response:
    """The library's message for an error of the caller; for any other error only that it happened."""
    if isinstance(error, HTTPException):
        return answer({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ValidationError):
        faults = error.errors()[:MAX_FAULTS]
        return answer({"error": "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in faults)}, 422)
    status = STATUS.get(type(error), 500)
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return answer({"error": "internal error" if status == 500 else message}, status)
