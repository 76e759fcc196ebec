"""A world, a model and a run so small that a whole training takes a second.

The world is told in one word and solved by saying it. The model is written down, not trained: it always answers in the
right form, and with each of the four actions equally often. gymnasium.make("tiny_worlds:tiny/Doors-v0") finds the world
once this folder is on sys.path.
"""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from gymnasium.envs.registration import register
from gymnasium.spaces import Text
from transformers import LlamaConfig, LlamaForCausalLM

from wmact.nano import build_tokenizer
from wmact_envs.text import TextEnv

register(id="tiny/Doors-v0", entry_point="tiny_worlds:Doors", order_enforce=False, disable_env_checker=True)

WORDS = ("up", "down", "left", "right")
steps = 0
"""Steps of all environments of this process, for what shall happen at a certain one."""


class Doors(TextEnv):
    """Four doors; the observation names the right one. Any other does not open, and nothing changes.

    Args:
        levels: how many there are; None: no end.
        split: without meaning here.
        fault: every action is answered by an exception; its message depends on the level's number modulo this.

    Environment variables, which unlike arguments do not end up in config.yaml:
        DOORS_KILL=n: kill -9 at the n-th step of the process.
        DOORS_NAP=n:seconds:path: from the n-th step on sleep so long before each; touch the file at the first nap.
    """

    rules = "Four doors. The observation names the one that opens."
    action_names = WORDS
    example_actions = ("up",)

    def __init__(
        self, levels: int | None = None, split: str = "train", fault: int = 0, render_mode: str | None = None
    ) -> None:
        super().__init__(Text(max_length=20, charset="abcdefghijklmnopqrstuvwxyz "), split, render_mode)
        self.num_levels, self.fault, self.number = levels, fault, 0
        self.state: tuple[str, bool] = ("up", False)

    def solution(self) -> list[str]:
        return [] if self.state[1] else [self.state[0]]

    def place(self) -> str:
        return self.state[0]

    def _load(self, number: int) -> tuple[str, int]:
        self.number = number
        self.state = (WORDS[number * 2654435761 % 2**32 >> 30], False)
        return f"doors{number}", 1

    def _act(self, action: str) -> float:
        global steps
        steps += 1
        if steps == int(os.environ.get("DOORS_KILL", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if nap := os.environ.get("DOORS_NAP"):
            first, seconds, path = nap.split(":")
            if steps >= int(first):
                Path(path).touch()
                time.sleep(float(seconds))
        if self.fault:
            raise RuntimeError(f"hinge {self.number % self.fault} is stuck")
        self.state = (self.state[0], action == self.state[0])
        return float(self.state[1])

    def _solved(self) -> bool:
        return self.state[1]

    def observe(self) -> str:
        return f"goal {self.state[0]}"


def write_model(folder: Path, hidden_size: int = 64) -> str:
    """Write a one-layer Llama that says ``<action> W </action>`` about nine times in ten, W any of the four words."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        chain = [("<|assistant|>",), ("<action>",), WORDS, ("</action>",), ("<|end|>",)]
        embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
        embedding[:, :16] = 0
        for place, (words, following) in enumerate(itertools.pairwise(chain)):
            for n, word in enumerate(words):
                ours = embedding[tokenizer.convert_tokens_to_ids(word)]
                ours.zero_()
                ours[4 * min(place, 3) + n] = hidden_size**0.5  # of mean square 1, as the norm before the head makes it
                for next_word in following:
                    head[tokenizer.convert_tokens_to_ids(next_word), 4 * min(place, 3) + n] = 10 / hidden_size**0.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(model: str, runs: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of a run: 4 iterations of 2 levels × 2 samples, annealed every 2; `changes` go into data."""
    world = {"id": "tiny_worlds:tiny/Doors-v0"}
    logs = {"save_dir": str(runs), "name": "doors"}
    callbacks: list[dict[str, Any]] = [
        {"class_path": "wmact.callbacks.RewardRescalingLogger"},
        {"class_path": "wmact.callbacks.EpisodeLog"},
        {"class_path": "wmact.callbacks.IterationProgress"},
        {"class_path": "wmact.callbacks.LastCheckpoint"},
    ]
    return {
        "seed_everything": 1,
        "annealing": {"class_path": "wmact.callbacks.TurnAnnealing", "init_args": {"every": 2}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 4,
            "check_val_every_n_epoch": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "logger": [
                {"class_path": f"wmact.loggers.{kind}", "init_args": logs} for kind in ("TensorBoard", "CSVMetrics")
            ],
            "callbacks": callbacks,
        },
        "model": {"class_path": "wmact.ppo.PPO", "init_args": {"model": model, "lr": 0.01, "critic_lr": 0.01}},
        "data": {
            "class_path": "wmact.data.RolloutData",
            "init_args": {
                "env": world,
                "val": {"standard": world},
                "test": {"standard": world},
                "groups": 2,
                "samples": 2,
                "max_turns": 5,
                "tell_rules": False,
                "limits": {"turn_tokens": 8},
                "validation": {"levels": 3, "curve": [1, 2]},
                "testing": {"levels": 3, "curve": [1, 2]},
                "engine": {"class_path": "wmact.engines.TransformersEngine", "init_args": {"dtype": "float32"}},
            }
            | changes,
        },
    }


def write_settings(path: Path, model: str, **changes: Any) -> str:
    """Write `settings` beside the runs they make."""
    path.write_text(yaml.safe_dump(settings(model, path.parent / "runs", **changes)))
    return str(path)
