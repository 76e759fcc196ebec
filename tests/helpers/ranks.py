"""Processes of one group, forked from a server that has imported everything: two of them start in a second.

What they run stands here too: the server has to find it by its name.
"""

import functools
import importlib
import math
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `python -m wmact` does
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["wmact.cli", "wmact.ppo", "wmact.grpo", "wmact.demonstrations"])


class Group:
    """As torchrun starts them: each process is told its rank. It works in a folder of its own, below `folder`.

    Args:
        arguments: those of each process; there are as many processes.
    """

    def __init__(self, folder: Path, work: Callable[..., Any], *arguments: Sequence[Any]) -> None:
        self.folders = [folder / str(rank) for rank in range(len(arguments))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": len(arguments), "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = []
        for rank, (own, mine) in enumerate(zip(self.folders, arguments, strict=True)):
            own.mkdir(parents=True)
            place = world | {"RANK": rank, "LOCAL_RANK": rank}
            self.processes.append(SERVER.Process(target=_rank, args=(own, place, work, mine)))
            self.processes[-1].start()

    def codes(self, timeout: float = 200) -> list[int | None]:
        """Wait for all; their exit codes. One that is late is killed."""
        for process in self.processes:
            process.join(timeout)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    def printed(self, stream: str = "stderr") -> list[str]:
        """What the processes printed, one after the other."""
        return [line for folder in self.folders for line in (folder / stream).read_text().splitlines()]


def _rank(folder: Path, place: dict[str, Any], work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ |= {name: str(value) for name, value in place.items()}
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    work(*arguments)


def run(
    words: Sequence[str],
    environment: dict[str, str] | None = None,
    faulty: str = "",
    error: Exception | None = None,
    times: int = 1,
) -> None:
    """The command line, as from a shell. A function ``faulty``, as module:name.name, raises an error so many times."""
    from wmact import cli

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal times
        times -= 1
        if times >= 0:
            assert error is not None
            raise error
        return original(*args, **kwargs)

    if faulty:
        module, _, names = faulty.partition(":")
        *owners, name = names.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original = getattr(owner, name)
        setattr(owner, name, fail)
    os.environ |= environment or {}
    sys.argv = ["wmact"]
    cli.main(list(words))


def trainer(strategy: str, world_size: int, **kwargs: Any) -> Any:
    """Of a training that leaves nothing behind."""
    import lightning as L

    from wmact.strategies import FSDP2

    return L.Trainer(
        accelerator="cpu", devices=world_size, strategy=FSDP2() if strategy == "fsdp" else strategy, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        max_epochs=1, **kwargs,
    )  # fmt: skip


def steps(
    strategy: str, world_size: int, shares: list[dict[int, Any]], settings: list[dict[str, Any]], out: Path
) -> None:
    """Train once on each share of episodes, with its settings; write down what the steps found and left.

    Each episode's number gives its ids, so that it is the same whoever trains on it.
    """
    import lightning as L
    import torch

    from episodes import make_episode
    from wmact.collate import collate
    from wmact.grpo import GRPO
    from wmact.module import AgentModule
    from wmact.ppo import PPO
    from wmact.processes import whole
    from wmact.types import TrainingStopped

    class Watched(AgentModule):
        """Laid over an algorithm. Descends along the gradient itself: Adam's first step makes as much of rounding."""

        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = [{key: g[key] for key in ("name", "params")} for g in super().configure_optimizers().param_groups]
            optimizer = torch.optim.SGD(groups, lr=0.01)
            optimizer.register_step_pre_hook(self.keep)
            return optimizer

        def keep(self, *_: Any) -> None:
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            seen["gradients"].append({name: whole(gradient).clone() for name, gradient in gradients.items()})

        def log_dict(self, figures: Any, **kwargs: Any) -> None:
            seen["logged"] |= {name: float(value) for name, value in figures.items()}

    class WatchedPPO(Watched, PPO):
        pass

    class WatchedGRPO(Watched, GRPO):
        pass

    class Fixed(L.LightningDataModule):
        performance: dict[str, float] = {}
        figures: dict[str, float] = {}

        def __init__(self, share: dict[int, Any]) -> None:
            super().__init__()
            self.episodes = [make_episode(*shape, level=number // 3, seed=number) for number, shape in share.items()]

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            batch = collate(self.episodes)
            behaviour_S = module.score(batch) - 0.1 * batch.targets_S % 3  # of an engine that is a little off
            yield batch._replace(behaviour_logprobs_S=behaviour_S, valid_S=batch.targets_S % 7 != 0)

        def train_dataloader(self) -> "Fixed":
            return self

    everything = []
    for share, chosen in zip(shares, settings, strict=True):
        seen: dict[str, Any] = {"gradients": [], "logged": {}, "stopped": ""}
        torch.manual_seed(7)
        chosen = {"max_grad_norm": math.inf, "max_mismatch_kl": math.inf} | chosen
        module: Any = {"PPO": WatchedPPO, "GRPO": WatchedGRPO}[chosen.pop("algorithm", "PPO")](**chosen)
        if isinstance(module, PPO):
            torch.nn.init.normal_(module.critic.head.weight, std=0.5)
        try:
            trainer(strategy, world_size).fit(module, datamodule=Fixed(share))
        except (TrainingStopped, ValueError) as stopped:
            seen["stopped"] = str(stopped)
        seen["weights"] = {name: whole(tensor).clone() for name, tensor in module.state_dict().items()}
        everything.append(seen)
    torch.save(everything, out)


def demonstrate(strategy: str, world_size: int, model: str, out: Path) -> None:
    """Train on three batches of five demonstrations; the model ends up in `out`, with what was played and lost."""
    import torch

    from wmact.demonstrations import DemonstrationData, World
    from wmact.environments import EnvSpec
    from wmact.processes import place
    from wmact.rollout import Limits
    from wmact.sft import SFT

    seen: dict[str, list[Any]] = {"nll": [], "levels": []}

    class Watched(SFT):
        def log(self, name: str, value: Any, **kwargs: Any) -> None:
            seen["nll"].append(float(value))
            seen["levels"].append([played.level for played in self.trainer.datamodule.episodes])

    data = DemonstrationData(
        batches=3,
        episodes_a_batch=5,
        model=model,
        worlds={"maze": World(EnvSpec(kwargs={"layout": "cells"}))},
        max_turns=2,
        tell_rules=False,
        limits=Limits(turn_tokens=128, episode_tokens=400),
    )
    module = Watched(model, lr=1e-3, save_to=str(out), token_budget=300)
    trainer(strategy, world_size).fit(module, datamodule=data)
    torch.save(seen, out.with_suffix(f".{place()[0]}"))
