"""A server of OpenAI's API on this machine that answers what a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """Status, body (bytes as they are, anything else as JSON), headers, and seconds to wait before it."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = {}
    delay: float = 0.0


class Asked(NamedTuple):
    """A request as it came in."""

    path: str
    body: Any
    headers: dict[str, str]


class Stub:
    """What runs on the server: `answer` makes of each request an answer; `asked` keeps them all."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer, self.asked = answer, list[Asked]()
        self.url = ""

    def bodies(self, path: str) -> list[Any]:
        """What was posted there."""
        return [asked.body for asked in self.asked if asked.path == path]


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Serve on loopback while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Any) -> None:
            stub.asked.append(Asked(self.path, body, dict(self.headers)))
            answer = stub.answer(stub.asked[-1])
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            time.sleep(answer.delay)
            try:
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(content))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has given up

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
