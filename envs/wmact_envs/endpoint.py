"""A server that speaks OpenAI's API; the standard library is enough for it."""

import json
import os
import time
import urllib.request
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

SHOWN = 200
"""Characters that an error shows of an answer."""


class Unreadable(OSError):
    """The server answered, but not as OpenAI's API does."""


class Endpoint:
    """A server. Whatever goes wrong with it is one line.

    OPENAI_API_KEY, where it is set, is sent along. Redirections are not followed: the key would go with them.

    Args:
        url: address of the API, such as http://127.0.0.1:8000/v1.
        timeout: seconds that the server may be silent.
        tries: how often a request is sent that the server does not answer now: it is down, slow or overloaded.
        pause: seconds before the second try; doubled before each further one.

    Raises:
        ValueError: no such address.
    """

    def __init__(self, url: str, timeout: float = 120.0, tries: int = 3, pause: float = 1.0) -> None:
        if not url.startswith(("http://", "https://")):  # urllib would read files too
            raise ValueError(f"url={url!r}: give the address of an API, such as http://127.0.0.1:8000/v1")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: must be above 0")
        self.url, self.timeout, self.tries, self.pause = url.rstrip("/"), timeout, tries, pause
        self._opener = urllib.request.build_opener(_NoRedirection)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return what the server answers to a GET of `path`, or to a POST of `body`, as plain data.

        Raises:
            OSError: it does not.
            Unreadable: it does, but not in JSON.
        """
        request = urllib.request.Request(f"{self.url}/{path}", headers={"Content-Type": "application/json"})
        if body is not None:
            request.data = json.dumps(body).encode()
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            if not (key.isascii() and key.isprintable()):  # urllib would refuse it with a message that shows it
                raise OSError("OPENAI_API_KEY has characters that no key has: set it again")
            request.add_header("Authorization", f"Bearer {key}")
        trouble = ""
        for attempt in range(self.tries):
            time.sleep(self.pause * 2 ** (attempt - 1) if attempt else 0)
            try:
                with self._opener.open(request, timeout=self.timeout) as answer:
                    return _data(request.full_url, answer.read())
            except HTTPError as error:
                trouble = f"HTTP {error.code}, {_message(error) or error.reason}"
                if error.code != 429 and error.code < 500:
                    raise OSError(f"{request.full_url}: {trouble}") from None
            except TimeoutError:
                trouble = f"no answer within {self.timeout:g} s"
            except URLError as error:
                reason: Any = error.reason
                trouble = f"no connection, {getattr(reason, 'strerror', None) or reason}"
            except (HTTPException, ConnectionError) as error:
                trouble = f"the answer broke off, {error or type(error).__name__}"
        raise OSError(f"{request.full_url}: {trouble} (tried {self.tries} times)")

    @cached_property
    def only_model(self) -> str:
        """The name of the only model that the server has.

        Raises:
            OSError: it does not answer, or not as OpenAI's API does.
            ValueError: it has several, or none.
        """
        return str(self.served(None)["id"])

    def served(self, name: str | None) -> dict[str, Any]:
        """Return what the server tells of the model of this name, or, without a name, of the only one it serves.

        Raises:
            OSError: it does not answer, or not as OpenAI's API does.
            ValueError: it has no such model, or several.
        """
        match answer := self.ask("models"):
            case {"data": [*entries]} if all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
                models = {entry["id"]: entry for entry in entries}
            case _:
                raise unexpected(f"{self.url}/models", answer)
        if name is None and len(models) == 1:
            return next(iter(models.values()))
        if name is None or name not in models:
            some = ", ".join(list(models)[:5]) or "none"
            asked = "several models or none" if name is None else f"no model {name!r}"
            raise ValueError(f"{self.url} serves {asked}; name one that it has: {some}")
        return models[name]


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Makes an error of what would lead elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def unexpected(address: str, answer: Any) -> Unreadable:
    """The error for an answer of another form."""
    return Unreadable(f"{address}: not an answer of OpenAI's API: {_short(json.dumps(answer))}")


def _data(address: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Unreadable(f"{address}: the answer is no JSON: {_short(content.decode(errors='replace'))}") from None


def _message(error: HTTPError) -> str:
    """What an error's answer says, in OpenAI's form, FastAPI's, or any other."""
    try:
        content = error.read()
    except (OSError, HTTPException):
        return ""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return _short(content.decode(errors="replace"))
    match answer:
        case {"error": {"message": str(told)}} | {"message": str(told)} | {"detail": str(told)}:
            return _short(told)
    return _short(json.dumps(answer))


def _short(text: str) -> str:
    told = " ".join(text.split())
    return told if len(told) <= SHOWN else told[: SHOWN - 1] + "…"
