"""Shared by the tests: a tiny random model in a folder, episodes of chosen shape, and an engine that reads a script."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch

from episodes import make_episode
from wmact import cli
from wmact.engines.base import Completion, Request, check_request
from wmact.nano import build_model, build_tokenizer
from wmact.types import Episode

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent

Script = Callable[[Request], "str | Completion"]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder of its own, as if called from a shell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["wmact"])


@pytest.fixture(scope="session")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of them, of mazes."""
    file, maze = tmp_path_factory.mktemp("triplets") / "maze.jsonl", ROOT / "configs" / "maze.yaml"
    cli.main(["collect", "--config", str(maze), "--out", str(file), "--source", "random", "--episodes", "30"])
    return str(file)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer Llama of random weights, large enough that next tokens differ in probability."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(hidden_size=32, layers=2, context=512)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(name="make_episode", scope="session")
def _make_episode() -> Callable[..., Episode]:
    return make_episode


class ScriptedEngine:
    """Answers with what `script` makes of a request: a text, which is encoded and ended properly, or a completion.

    A request is answered `delay(request)` steps after the first one that could; `submitted` keeps all, in order.
    """

    def __init__(self, script: Script, delay: Callable[[Request], int] = lambda request: 0, context: int = 512) -> None:
        self.script, self.delay, self.max_model_len = script, delay, context
        self.tokenizer = build_tokenizer()
        self.submitted: list[Request] = []
        self.aborted = 0
        self._left: dict[int, int] = {}
        self._requests: dict[int, Request] = {}

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        pass

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        pass

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass

    def submit(self, request: Request) -> None:
        check_request(request, self.max_model_len, len(self.tokenizer), self._requests)
        self.submitted.append(request)
        self._requests[request.id], self._left[request.id] = request, self.delay(request)

    def step(self) -> list[Completion]:
        ready = [key for key, left in self._left.items() if left == 0]
        self._left = {key: left - 1 for key, left in self._left.items() if left}
        return [self._complete(self._requests.pop(key)) for key in ready]

    def abort(self) -> None:
        self.aborted += 1
        self._left, self._requests = {}, {}

    def _complete(self, request: Request) -> Completion:
        answer = self.script(request)
        if isinstance(answer, Completion):
            return answer
        ids = self.tokenizer.encode(answer, add_special_tokens=False) + [self.tokenizer.eos_token_id]
        stopped = len(ids) <= request.max_tokens
        ids = ids[: request.max_tokens]
        return Completion(request.id, ids, [-0.5] * len(ids), stopped)


@pytest.fixture
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine
