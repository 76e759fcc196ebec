"""Processes of one group, forked from a server that has imported everything: two of them start in a second.

What they run stands here too: the server has to find it by its name.
"""

import functools
import importlib
import math
import multiprocessing
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `python -m wmact` does
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["wmact.cli", "wmact.ppo", "wmact.strategies"])


class Group:
    """As torchrun starts them: each process is told its rank. What it prints ends up in a file of its own."""

    def __init__(self, folder: Path, work: Callable[..., Any], *arguments: Sequence[Any]) -> None:
        """`arguments` are those of each process; there are as many processes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": len(arguments), "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = [
            SERVER.Process(target=_rank, args=(folder, world | {"RANK": rank, "LOCAL_RANK": rank}, work, mine))
            for rank, mine in enumerate(arguments)
        ]
        for process in self.processes:
            process.start()

    def codes(self, timeout: float = 200) -> list[int | None]:
        """Wait for all; the exit codes. One that is late is killed."""
        for process in self.processes:
            process.join(timeout)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    def printed(self) -> list[str]:
        """What the processes printed as errors, one after the other."""
        return [line for path in sorted(self.folder.glob("stderr*")) for line in path.read_text().splitlines()]


def _rank(folder: Path, world: dict[str, Any], work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ |= {name: str(value) for name, value in world.items()}
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / f"{name}{world['RANK']}", os.O_WRONLY | os.O_CREAT), number)
    import torch

    torch.set_num_threads(1)
    work(*arguments)


def run(
    words: Sequence[str], environment: dict[str, str] | None = None, faulty: str = "", error: Exception | None = None
) -> None:
    """The command line, as from a shell; a function ``faulty``, written module:name.name, raises an error."""
    from wmact import cli

    def fail(*_: Any, **__: Any) -> None:
        assert error is not None
        raise error

    if faulty:
        module, _, names = faulty.partition(":")
        *owners, name = names.split(".")
        setattr(functools.reduce(getattr, owners, importlib.import_module(module)), name, fail)
    os.environ |= environment or {}
    sys.argv = ["wmact"]
    cli.main(list(words))


def episode(shape: Sequence[tuple[int, int, float]], number: int) -> Any:
    """An episode of random ids; a turn is (tokens given before it, tokens of it, reward)."""
    from wmact.types import Episode, Turn

    draw = random.Random(number)
    made = Episode("env", number, str(number), 0, number, 0, stop_reason="turns")
    for given, sampled, reward in shape:
        start = len(made.ids) + given
        made.ids += [draw.randrange(50) for _ in range(given + sampled)]
        made.logprobs += [0.0] * given + [-1.0] * sampled
        made.turns.append(Turn(start, start + sampled, "", "valid", reward=reward))
    return made


def steps(strategy: str, shares: list[dict[int, Any]], settings: list[dict[str, Any]], out: Path) -> None:
    """Train one iteration on a share of the episodes, with each of the settings; write down what each step found."""
    import lightning as L
    import torch

    from wmact.collate import collate
    from wmact.ppo import PPO
    from wmact.processes import whole
    from wmact.strategies import FSDP2

    class Watched(PPO):
        """Descends along the gradient itself: Adam's first step makes as much of a rounding error as of a gradient."""

        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = [{key: g[key] for key in ("name", "params")} for g in super().configure_optimizers().param_groups]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            optimizer.register_step_pre_hook(self.keep)
            return optimizer

        def keep(self, *_: Any) -> None:
            named = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            seen["gradients"].append({name: whole(gradient).clone() for name, gradient in named.items()})

        def log_dict(self, figures: Any, **kwargs: Any) -> None:
            seen["logged"] |= {name: float(value) for name, value in figures.items()}

    class Fixed(L.LightningDataModule):
        performance = {}

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            batch = collate([episode(shape, number) for number, shape in share.items()])
            behaviour_S = module.score(batch) - 0.1 * batch.targets_S % 3  # an engine that is a little off
            yield batch._replace(behaviour_logprobs_S=behaviour_S, valid_S=batch.targets_S % 7 != 0)

        def train_dataloader(self) -> "Fixed":
            return self

    everything = []
    world_size = int(os.environ.get("WORLD_SIZE", 1))  # Lightning takes it away after a fit
    for share, chosen in zip(shares, settings, strict=True):
        seen: dict[str, Any] = {"gradients": [], "logged": {}}
        torch.manual_seed(7)
        module = Watched(**{"max_grad_norm": math.inf, "max_mismatch_kl": math.inf} | chosen)
        torch.nn.init.normal_(module.critic.head.weight, std=0.5)
        trainer = L.Trainer(
            accelerator="cpu", devices=world_size, strategy=FSDP2() if strategy == "fsdp" else strategy, max_epochs=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=Fixed())
        seen["weights"] = {name: whole(p.detach()).clone() for name, p in module.named_parameters()}
        everything.append(seen)
    torch.save(everything, out)
