"""The calculator against arithmetic by hand and against what is measured, and the paper's settings by a dry run."""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

import command_line
import ranks
from wmact import cli
from wmact.collate import collate
from wmact.costs import (
    Episodes,
    Machine,
    Sizes,
    activations,
    count,
    forward_flops,
    generation_seconds,
    matrices,
    update_flops,
)
from wmact.estimate import GIB, Experiment, estimate, misfits, training_memory
from wmact.grpo import GRPO
from wmact.lora import LoRA
from wmact.models import Policy
from wmact.nano import build_tokenizer
from wmact.ppo import PPO
from wmact.types import Episode

PAPER = Path(__file__).resolve().parent.parent / "configs" / "paper"
MAZE = str(PAPER.parent / "maze.yaml")
QWEN3, QWEN25 = str(PAPER / "qwen3_8b"), str(PAPER / "qwen2_5_7b")
H100 = Machine(79 * GIB, 989e12, 3350e9, 0.35, 0.5)
WORLDS = ("maze", "sokoban", "taxi")
QWEN25_BESIDE = ("--config", str(PAPER / "qwen2_5_7b.yaml"), "--model.model", QWEN25)


def weightless(model: str, **settings: Any) -> PPO:
    with torch.device("meta"):
        return PPO(model, **settings)


pytestmark = pytest.mark.usefixtures("alone")
run = partial(command_line.run, "estimate")


def of(world: str, *more: str, model: str = QWEN3) -> list[str]:
    """The words for a paper setting."""
    return ["--config", str(PAPER / f"{world}_qwen3_8b.yaml"), "--model.model", model, *more]


# Parameters


def test_parameters_are_those_that_are_published() -> None:
    """8.19 and 7.62 billion, without a weight in memory."""
    # Qwen3-8B: a layer has q 4096·4096, k and v 4096·1024 each, o 4096·4096, three MLP matrices 4096·12288, norms of
    # 2·4096 and 2·128; 36 layers, a last norm of 4096, embedding and output of 151936·4096 each
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    qwen3 = weightless(QWEN3)
    assert count(qwen3.policy) == 36 * layer + 4096 + 2 * 151936 * 4096 == 8_190_735_360
    assert count(qwen3.critic) == 8_190_735_360 - 151936 * 4096 + 4096 + 1  # a head of one output in place of V
    assert matrices(qwen3.policy.lm.base_model) == 36 * (layer - 2 * 4096 - 2 * 128)
    # Qwen2.5-7B: biases of q, k and v, and no norms of queries and keys
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584
    assert count(weightless(QWEN25).policy) == 28 * layer + 3584 + 2 * 152064 * 3584 == 7_615_616_512
    assert all(parameter.is_meta for parameter in qwen3.parameters())


def test_a_folder_without_weights_is_for_the_meta_device_only() -> None:
    with pytest.raises(ValueError, match="its weights cannot be loaded"):
        Policy(QWEN25)


@pytest.mark.parametrize(("critic", "lora"), [("separate", None), ("shared", None), ("separate", LoRA(r=4))])
def test_state_is_exact(critic: Any, lora: LoRA | None, make_episode: Callable[..., Episode]) -> None:
    """Weights, gradients and AdamW's averages against those of a real step on nano."""
    ppo = PPO("nano", critic=critic, lora=lora)
    optimizer = ppo.configure_optimizers()
    batch = collate([make_episode((3, 4, 1.0))])
    (ppo.policy(batch)[0].sum() + ppo.critic(batch).sum()).backward()
    optimizer.step()
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    words = [] if lora is None else ["--model.lora", json.dumps(asdict(lora))]
    said = training_memory(Experiment(["--config", MAZE, "--model.critic", critic, *words]))
    parameters = list(ppo.parameters())
    assert said.weights == size(parameters)
    assert said.gradients == size(p.grad for p in parameters if p.grad is not None)
    averages = (a for p in parameters for name, a in optimizer.state[p].items() if name.startswith("exp_avg"))
    assert said.optimizer == size(averages)


def test_shards_and_precision() -> None:
    """Eight shards of 15.76 billion parameters; bf16-mixed trains float32."""
    learnt = 8_190_735_360 + 7_568_409_601
    mixed = training_memory(Experiment(of("maze")))
    assert (mixed.weights, mixed.gradients, mixed.optimizer) == (learnt / 2, learnt / 2, learnt)  # 4, 4, 8 bytes ÷ 8
    layer = 192_946_432  # as above
    outside = 8_190_735_360 - 36 * layer
    assert mixed.whole == 2 * 2 * (outside + 2 * layer)  # weights and gradients, 2 bytes each
    learnt, frozen = 893_056 + 893_056 + 129, 893_056  # policy and critic; the reference
    whole = training_memory(Experiment(["--config", MAZE, "--model.kl_coef", "0.1"]))
    assert (whole.weights, whole.optimizer, whole.whole) == (4 * (learnt + frozen), 8 * learnt, 0)
    with pytest.raises(ValueError, match=r"^trainer\.precision=bf16-true: use 32-true or bf16-mixed$"):
        Experiment(["--config", MAZE, "--trainer.precision", "bf16-true"])


@pytest.mark.parametrize(("beside", "parameters"), [((), 8_190_735_360), (QWEN25_BESIDE, 7_615_616_512)])
def test_grpo_has_a_reference_and_no_critic(
    beside: tuple[str, ...], parameters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Policy and reference in float32, eight shards; a checkpoint has both, and two averages."""
    words = of("maze", *beside, "--config", str(PAPER / "rwml.yaml"))
    memory = training_memory(Experiment(words))
    assert (memory.weights, memory.gradients) == (parameters, parameters / 2)  # 2 · 4 bytes ÷ 8, 4 ÷ 8
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "  critic " not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("  a checkpoint"))
    assert line.split()[2] == f"{16 * parameters / GIB:.1f}"


# Activations


def by_hand(sizes: Sizes, between: int, qk_norm: bool, c: int) -> int:
    """Bytes of a token: what each operation of Llama or Qwen keeps, c bytes an entry.

    In each layer: norms their input in float32, the normalised, and a float32 a row; linear layers what goes in;
    attention q, k, v and twice what comes out (once before the episodes are joined), and a float32 a head; the MLP four
    times its width. Then the last norm, sine and cosine of the position, and the token's id.
    """
    h, q, k = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    norms = (2 * h + qk_norm * (q + k)) * (4 + c) + 4 * (2 + qk_norm * (sizes.heads + sizes.kv_heads))
    layer = norms + 2 * h * c + c * (q + 2 * k) + 2 * c * q + 4 * sizes.heads + 4 * c * between
    return sizes.layers * layer + h * (4 + c) + 4 + 2 * sizes.head_dim * c + 8


@pytest.mark.parametrize(("dtype", "c"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize(("model", "qk_norm"), [(QWEN3, True), (QWEN25, False), ("nano", False)])
def test_activations_are_those_of_the_operations(model: str, qk_norm: bool, dtype: torch.dtype, c: int) -> None:
    policy = weightless(model).policy
    config = policy.lm.config
    expected = by_hand(Sizes.of(config), config.intermediate_size, qk_norm, c)
    assert activations(policy, 1000, dtype) == 1000 * expected


def scaled_down(source: str, folder: Path) -> str:
    """A random model of the same kind as that of a config.json, with nano's tokenizer."""
    settings = json.loads(Path(source, "config.json").read_text())
    tokenizer = build_tokenizer()
    settings |= {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048}
    settings |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "dtype": "float32"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of models like those of the paper."""
    folder = tmp_path_factory.mktemp("small")
    return {"qwen3": scaled_down(QWEN3, folder / "qwen3"), "qwen25": scaled_down(QWEN25, folder / "qwen25")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["nano", "qwen3", "qwen25"])
def test_activations_are_those_of_a_real_pass(
    name: str, dtype: torch.dtype, small: dict[str, str], make_episode: Callable[..., Episode]
) -> None:
    """Within 12 %: on a CPU attention keeps keys and values once a head, on a GPU once a group of heads."""
    model = small.get(name, name)
    policy = Policy(model).to(dtype)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = collate([make_episode((100, 412, 1.0))])
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = policy.hidden(batch)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del hidden
    assert activations(weightless(model).policy, 512, dtype) == pytest.approx(measured, rel=0.12)


# Arithmetic and time


@pytest.mark.parametrize("name", ["nano", "qwen3"])
def test_flops_are_those_that_pytorch_counts(
    name: str, small: dict[str, str], make_episode: Callable[..., Episode]
) -> None:
    policy = Policy(small.get(name, name))
    sizes, trunk = Sizes.of(policy.lm.config), policy.lm.base_model
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        policy.hidden(collate([make_episode((100, 200, 1.0))]))
    attention = 2 * sizes.layers * sizes.heads * sizes.head_dim * 300**2
    whole = forward_flops(trunk, sizes, 300) + attention  # without a kernel for it, the masked half is computed too
    assert counter.get_total_flops() == whole


def test_flops_of_an_update() -> None:
    ppo = weightless("nano")
    sizes, trunk = Sizes.of(ppo.policy.lm.config), ppo.policy.lm.base_model
    forward, output = forward_flops(trunk, sizes, 50), 2 * 128 * 312 * 30
    episodes = Episodes(7, 10, 5, 3, 30)  # 10 + 2 · 5 given and 30 sampled are 50 tokens
    assert update_flops(ppo, sizes, episodes) == 7 * (2 * 3 * forward + 3 * output)
    with torch.device("meta"):  # no critic, and a pass of the reference
        grpo, echo = GRPO("nano"), GRPO("nano", echo_coef=0.1)
    assert update_flops(grpo, sizes, episodes) == 7 * (3 * forward + 3 * output + forward + output)
    # the output layer is applied to all but the first message too
    told = 2 * sizes.hidden * sizes.vocabulary * (episodes.given - episodes.prompt)
    assert update_flops(echo, sizes, episodes) == update_flops(grpo, sizes, episodes) + 7 * 3 * told
    again = weightless("nano", gradient_checkpointing=True)
    assert update_flops(again, sizes, episodes) == 7 * (2 * 4 * forward + 3 * output)
    adapters = weightless("nano", lora=LoRA())
    through = forward_flops(adapters.policy.lm.base_model, sizes, 50)
    assert through > forward
    assert update_flops(adapters, sizes, episodes) == 7 * (2 * 2 * through + 2 * output)
    more = weightless("nano", epochs=2, kl_coef=0.1)  # old and reference policy: two passes without gradient
    assert update_flops(more, sizes, episodes) == 7 * (2 * (2 * 3 * forward + 3 * output) + 2 * (forward + output))


def test_samples_read_their_first_message_once() -> None:
    with torch.device("meta"):
        grpo = GRPO("nano", kl_coef=0.0)
    sizes, trunk = Sizes.of(grpo.policy.lm.config), grpo.policy.lm.base_model
    of = functools.partial(forward_flops, trunk, sizes)
    output = 2 * 128 * 312 * 10
    long = Episodes(8, 40, 0, 1, 10, samples=4)  # two levels: 2 messages are read, and 8 replies after them
    assert update_flops(grpo, sizes, long) == pytest.approx(3 * (2 * of(40) + 8 * (of(50) - of(40)) + 8 * output))
    short = Episodes(8, 4, 0, 1, 10, samples=4)  # less than half of an episode: read by each
    assert update_flops(grpo, sizes, short) == pytest.approx(8 * 3 * (of(14) + output))
    endless = Machine(GIB, 1.0, 1e30, 1.0, 1.0)
    times = [generation_seconds(grpo.policy, sizes, 4, long._replace(samples=n), 8, endless) for n in (1, 4)]
    assert times[0] - times[1] == pytest.approx(6 * of(40))


def test_seconds_of_generation() -> None:
    """Two rounds of 40 steps of 5 episodes, each bound by memory; then by arithmetic."""
    policy = weightless("nano").policy
    sizes = Sizes.of(policy.lm.config)
    episodes = Episodes(10, 12, 4, 3, 40)  # 20 given; 40 tokens before a sampled one on average
    weights = matrices(policy.lm.base_model) + 128 * 312
    reading = 10 * forward_flops(policy.lm.base_model, sizes, 20) / (1e12 * 0.5)
    moved = 4 * weights + 5 * 40 * (2 * 4 * 128 * 4)  # keys and values of 4 layers × 128 × 4 bytes
    slow = Machine(GIB, 1e12, 1e6, 0.5, 0.25)
    assert generation_seconds(policy, sizes, 4, episodes, 5, slow) == pytest.approx(reading + 80 * moved / 250e3)
    computed = 5 * (2 * weights + 4 * 4 * 128 * 40)
    fast = slow._replace(bandwidth=1e15)
    assert generation_seconds(policy, sizes, 4, episodes, 5, fast) == pytest.approx(reading + 80 * computed / 500e9)


# The paper's settings


def header(world: str) -> list[str]:
    """What a configuration quotes of the estimate."""
    lines = (PAPER / f"{world}_qwen3_8b.yaml").read_text().splitlines()
    return [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]


@pytest.mark.parametrize("world", WORLDS)
def test_a_dry_run_of_the_papers_settings(
    world: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PAPER.parent.parent)
    (command,) = re.findall("^# python -m wmact estimate (.+)$", (PAPER / f"{world}_qwen3_8b.yaml").read_text(), re.M)
    assert run(*command.split()) == 0
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert told[-1] == "fits"
    quoted = header(world)
    assert len(quoted) == 5
    for line in quoted:  # the figures in the file are those of the calculator
        assert " ".join(line.split()) in told
    assert run("--config", str(PAPER / f"{world}_qwen3_8b.yaml"), *QWEN25_BESIDE) == 0
    assert "7,615,616,512" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["rwml", "policy"])
def test_a_dry_run_of_rwmls_settings(stage: str, triplets: str, capsys: pytest.CaptureFixture[str]) -> None:
    if stage == "policy":
        pytest.importorskip("alfworld", reason="the extra alfworld is not installed")
    words = ["--config", str(PAPER / f"alfworld_{stage}_qwen3_8b.yaml")]
    words += ["--data.triplets", triplets] if stage == "rwml" else []
    for model, parameters in {QWEN3: "8,190,735,360", QWEN25: "7,615,616,512"}.items():
        assert run(*words, "--model.model", model) == 0
        told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert f"policy {parameters}" in told
        assert f"reference {parameters} for the KL term" in told
        assert told[-1] == "fits"


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str) -> list[str]:
        assert run(*of("maze", *more)) == 1
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("does not fit: ")]

    def noted(*more: str) -> str:
        assert run(*of("maze", *more)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "fits"
        return next(line for line in lines if line.startswith("note: "))

    # 4 shards: 12 bytes of 15.76 billion parameters ÷ 4 are 44.0 GiB; 15.3 of the engine and 28 of its cache
    assert told("--devices", "4") == [
        "does not fit: rollout: 87.3 GiB and the reserve are more than the 79.0 GiB of a device",
        "does not fit: update: 75.9 GiB and the reserve are more than the 79.0 GiB of a device",
    ]
    awake = told("--data.engine.sleep_mode", "false", "--device_memory", "90")  # 46.5 and 43.3 GiB
    assert awake == ["does not fit: update: 89.8 GiB and the reserve are more than the 90.0 GiB of a device"]
    assert noted("--trainer.num_nodes", "3") == (  # 24 processes
        "note: data.groups=32 on 24 processes: some play a level more, and the others wait"
    )
    short = noted("--data.engine.max_model_len", "18000")
    assert re.search(r"note: context: an episode may take 2\d,\d{3} tokens, and the engine holds 18,000", short)
    (cache,) = told("--data.engine.kv_cache_gib", "4")  # 32768 tokens of 2 · 36 · 8 · 128 · 2 = 147456 bytes
    assert cache == "does not fit: KV cache: vLLM starts only with room for max_model_len=32768 tokens, 4.5 GiB"


def test_engines_on_devices_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Four that train with 44 GiB between updates, four with an engine of 15.3 and a cache of 52."""
    words = of("maze", "--config", str(PAPER / "own_devices.yaml"))
    found = Experiment(words)
    machine = H100._replace(memory=139 * GIB)
    said = estimate(found, machine)
    assert said.rollout_peak == said.training.state == 12 * (8_190_735_360 + 7_568_409_601) / 4
    assert said.serving.awake == 2 * 8_190_735_360 + 52 * GIB
    assert said.update_peak == said.training.peak
    assert misfits(found, machine, said) == []
    assert misfits(found, H100._replace(memory=70 * GIB), said)[-1].startswith("engine: 67.3 GiB")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--trainer.devices", "auto"], "trainer.devices='auto': give a number from 1 on with --devices"),
        (["--devices", "64"], "data.groups=32: each of the 64 processes needs at least one"),
        (["--mfu", "0"], "--mfu 0.0: must be above 0"),
        (["--data.grups", "1"], "data: Option 'grups' is not accepted"),
        (["--trainer.precision", "16-mixed"], "trainer.precision=16-mixed: use 32-true or bf16-mixed"),
        (["--trainer.strategy", "ddp_spawn"], "trainer.strategy is ddp_spawn: use ddp"),
        (["--data.engine.max_model_len", "50000"], "max_model_len=50000 is over the model's own limit of 40960"),
        (["--data.env.id", "wmact/Mace-v0"], "environment 'wmact/Mace-v0'"),
        (["--config", str(PAPER.parent / "warmstart" / "nano.yaml")], "estimate knows PPO and GRPO, and model is SFT"),
    ],
)
def test_what_cannot_be_run(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = of("maze") if "nano" not in words[-1] else []
    assert run(*start, *words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"wmact: {line}"), told


# Their scaled-down twins


def printed(capsys: pytest.CaptureFixture[str], *files: str) -> dict[str, Any]:
    """All settings, by their path."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["fit", *(word for file in files for word in ("--config", str(PAPER / file))), "--print_config"])
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        else:
            flat[path[1:]] = value

    walk(yaml.safe_load(capsys.readouterr().out), "")
    return flat


@pytest.mark.parametrize("world", WORLDS)
def test_a_twin_differs_in_size_only(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    paper, twin = printed(capsys, f"{world}_qwen3_8b.yaml"), printed(capsys, f"{world}_qwen3_8b.yaml", "tiny.yaml")
    different = {key for key in paper.keys() | twin.keys() if paper.get(key) != twin.get(key)}
    different = {key for key in different if not key.startswith("data.init_args.engine.")}
    sizes = {"groups", "samples", "max_turns", "limits.turn_tokens", "limits.episode_tokens", "validation.levels"}
    sizes |= {"validation.curve", "testing.levels", "testing.curve", "testing.samples"}
    assert different <= {
        *("trainer.accelerator", "trainer.devices", "trainer.max_epochs", "trainer.check_val_every_n_epoch"),
        *("annealing.init_args.every", "model.init_args.model", "model.init_args.token_budget"),
        *(f"data.init_args.{size}" for size in sizes),
    }


def trained(world: str, settings: list[str], folder: Path) -> list[dict[str, Any]]:
    """Train a twin with two processes; return the episodes that it has trained on."""
    loggers = yaml.safe_load((PAPER / f"{world}_qwen3_8b.yaml").read_text())["trainer"]["logger"]
    for logger in loggers:
        logger["init_args"]["save_dir"] = str(folder / "runs")
    words = ["fit", *settings, "--trainer.logger", json.dumps(loggers)]
    group = ranks.Group(folder / "group", ranks.run, (words,), (words,))
    assert group.codes() == [0, 0], group.printed()
    run_folder = folder / "runs" / f"{world}_qwen3_8b" / "version_0"
    assert (run_folder / "checkpoints" / "last.ckpt").is_file()
    files = run_folder.glob("episodes*.jsonl")  # of each process
    episodes = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    episodes = [episode for episode in episodes if episode["variant"] is None]  # not those of evaluations
    assert len(episodes) == 8  # two iterations of two levels × two samples
    return episodes


def twin_of(world: str, model: str) -> list[str]:
    """The words for a twin."""
    files = ("--config", str(PAPER / f"{world}_qwen3_8b.yaml"), "--config", str(PAPER / "tiny.yaml"))
    return [*files, "--model.model", model]


@pytest.mark.parametrize(("world", "model"), [("maze", "nano"), ("sokoban", "qwen3"), ("taxi", "qwen25")])
def test_a_twin_trains(world: str, model: str, small: dict[str, str], tmp_path: Path) -> None:
    """Two processes, weights in shards, bfloat16; and the estimate of its tokens against what it counted."""
    settings = twin_of(world, small.get(model, model))
    episodes = trained(world, settings, tmp_path)
    written = [sum(turn["end"] - turn["start"] for turn in episode["turns"]) for episode in episodes]
    twin = Experiment(settings)
    limits = twin.episodes()
    assert max(written) <= limits.sampled
    assert all(len(episode["ids"]) <= limits.length for episode in episodes)
    turns = sum(len(episode["turns"]) for episode in episodes) / 8
    said = estimate(twin, H100, sampled=sum(written) / 8, turns=turns).expected
    counted = sum(len(episode["ids"]) for episode in episodes) / 8
    assert said.length == pytest.approx(counted, rel=0.1)  # texts are taken to be as long as the longest of a few


def test_the_twin_of_rwml_trains(triplets: str, tmp_path: Path) -> None:
    """As above, on triplets of mazes; the embedder would be behind an endpoint."""
    settings = [*twin_of("alfworld_rwml", "nano"), "--data.triplets", triplets]
    settings += ["--data.limits.turn_tokens", "160", "--data.limits.episode_tokens", "160", "--data.tag", "action"]
    settings += ["--data.reward.distance", "wmact.rwml.RougeL", "--data.reward.threshold", "0.8"]
    episodes = trained("alfworld_rwml", settings, tmp_path)
    assert {episode["env"] for episode in episodes} == {"wmact/Prediction-v0"}
    assert {episode["reward"] for episode in episodes} == {0.0, 1.0}


def test_with_shards_a_base_is_held_once_for_each_network() -> None:
    words = of("maze", "--model.lora.r", "16")
    found = Experiment(words)
    held = estimate(found, H100).training.weights
    base, adapters = 8_190_735_360, sum(p.numel() for p in found.module.parameters() if p.requires_grad)
    assert found.module.reference is None
    # float32, in 8 shards: the policy's base, and the critic's, which has no output layer
    assert 4 * (base + adapters) / 8 < held < 4 * (2 * base + adapters) / 8
    assert held == 4 * sum(sum(p.numel() for p in each.parameters()) for each in found.module.children()) / 8
