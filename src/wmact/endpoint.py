"""Playing by way of a server that speaks OpenAI's API.

Two of its ways to ask are spoken here, each as a `wmact.rollout.Sampler`:
- `TokenCompletions`, ``/v1/completions`` with token ids both ways: what was sampled is sent back as it was sampled, as
  in training. vLLM serves this.
- `ChatCompletions`, ``/v1/chat/completions`` with messages: what every such server has. It renders and tokenises the
  whole conversation anew each turn.
"""

import sys
from collections import deque
from collections.abc import Sequence

from wmact.chat import Following
from wmact.engines import Completion, Request
from wmact_envs.endpoint import Endpoint, unexpected


class OneByOne:
    """A sampler that answers one request a step. A subclass writes `complete`."""

    max_model_len = sys.maxsize

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def step(self) -> list[Completion]:
        """Answer the first request that waits."""
        return [self.complete(self._waiting.popleft())] if self._waiting else []

    def abort(self) -> None:
        """Forget all requests."""
        self._waiting.clear()

    def complete(self, request: Request) -> Completion:
        """Answer a request."""
        raise NotImplementedError


class TokenCompletions(OneByOne):
    """Continues token ids by ``/v1/completions``, with the whole distribution, as our own engines do.

    Args:
        endpoint: a server, of vLLM.
        model: name of the model there, or None for the only one; its tokenizer must be the one that encodes.
        stop_token_ids: what ends a reply, and nothing else does.
        temperature: of sampling.

    Raises:
        OSError: the server does not answer, or not as vLLM does.
        ValueError: it has no such model.
    """

    def __init__(
        self, endpoint: Endpoint, model: str | None, *, stop_token_ids: Sequence[int], temperature: float
    ) -> None:
        super().__init__()
        self.endpoint, self.stop_token_ids = endpoint, list(stop_token_ids)
        served = endpoint.served(model)
        match served:
            case {"id": str(name), "max_model_len": int(length)}:
                self.max_model_len = length
            case _:
                raise OSError(f"{endpoint.url} does not tell how long a context it serves, {NOT_VLLM}")
        self.fixed = {
            "model": name,
            "temperature": temperature,
            # what the model's generation config would change
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,
            "stop_token_ids": self.stop_token_ids,
            "return_token_ids": True,
        }

    def complete(self, request: Request) -> Completion:
        """Ask for the next reply."""
        own = {"prompt": request.prompt_ids, "max_tokens": request.max_tokens, "seed": request.seed}
        answer = self.endpoint.ask("completions", self.fixed | own)
        where = f"{self.endpoint.url}/completions"
        match answer:
            case {"choices": [{"finish_reason": "stop" | "length", "token_ids": [*ids]}]} if ids:
                if not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(ids) > request.max_tokens:
                    raise unexpected(where, answer)
            case {"choices": [{"finish_reason": "stop" | "length", "text": str()}]}:
                raise OSError(f"{where} answers without token ids, {NOT_VLLM}")
            case _:
                raise unexpected(where, answer)
        stopped = ids[-1] in self.stop_token_ids
        if not stopped and len(ids) < request.max_tokens:  # nothing could be appended to such a reply
            raise OSError(f"{where} ended a reply without its end-of-turn token; {NOT_VLLM}")
        return Completion(request.id, ids, [], stopped)


NOT_VLLM = "as vLLM's would; leave the model folder out to talk in messages"


class Messages:
    """A conversation in messages; what stands for a token id is the number of a message.

    So an episode that has no tokens is played by the same loop as one that has.
    """

    def __init__(self) -> None:
        self.said: list[dict[str, str]] = []

    def say(self, role: str, text: str) -> list[int]:
        """Append a message; return its number, as the only one of a list."""
        self.said.append({"role": role, "content": text})
        return [len(self.said) - 1]

    def open(self, text: str) -> list[int]:
        """Begin with a message of the user's."""
        return self.say("user", text)

    def following(self, text: str, hint: str = "") -> Following:
        """Go on with a message of the user's."""
        return Following(self.say("user", hint + text), 0, 1)

    def decode(self, ids: list[int]) -> str:
        """Return the text of messages."""
        return "".join(self.said[i]["content"] for i in ids)


class ChatCompletions(OneByOne):
    """Answers `messages` by ``/v1/chat/completions``.

    Args:
        endpoint: a server of any make.
        model: name of the model there, or None for the only one.
        messages: where the conversation is kept.
        temperature: of sampling.

    Raises:
        OSError: the server does not answer, or not as OpenAI's API does.
        ValueError: there are several models and no name.
    """

    def __init__(self, endpoint: Endpoint, model: str | None, messages: Messages, *, temperature: float) -> None:
        super().__init__()
        self.endpoint, self.messages = endpoint, messages
        self.fixed = {"model": model or endpoint.only_model, "temperature": temperature}

    def complete(self, request: Request) -> Completion:
        """Ask for the next reply."""
        messages = [self.messages.said[i] for i in request.prompt_ids]
        own = {"messages": messages, "max_tokens": request.max_tokens, "seed": request.seed}
        match answer := self.endpoint.ask("chat/completions", self.fixed | own):
            case {
                "choices": [{"finish_reason": "stop" | "length" as end, "message": {"content": str() | None as text}}]
            }:
                return Completion(request.id, self.messages.say("assistant", text or ""), [], end == "stop")
            case _:
                raise unexpected(f"{self.endpoint.url}/chat/completions", answer)
