"""Adapters: gradients by the chain rule, one base under all networks, and what leaves the trainer with them added."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny_worlds
from wmact import cli
from wmact.collate import collate
from wmact.demonstrations import DemonstrationData, World
from wmact.environments import EnvSpec
from wmact.export import export
from wmact.lora import LoRA, Weights, adapted, fingerprint
from wmact.models import Critic, Policy, load_model
from wmact.ppo import PPO
from wmact.rollout import Limits
from wmact.sft import SFT
from wmact.types import Batch, Episode

SMALL = LoRA(r=4, alpha=8)  # scaled by 2


@pytest.fixture
def batch(make_episode: Callable[..., Episode]) -> Batch:
    return collate([make_episode((3, 4, 0.0), (2, 3, 1.0), seed=1), make_episode((6, 6, 0.0), seed=4)])


def stir(network: torch.nn.Module, seed: int = 1) -> None:
    """Give adapters something to say: the second matrix of a new one is zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=draw)


def merged(network: Any, folder: Path) -> Any:
    """An ordinary model of the folder with the network's weights."""
    model = load_model(str(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(Weights(network)[name])
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_gradients_are_the_chain_rule(kind: str, checkpointing: bool, tiny_model: Path, batch: Batch) -> None:
    """Of W + s·BA with the gradient G of a dense W: s·BᵀG for A, s·GAᵀ for B; and both networks say the same."""
    lm = adapted(load_model(str(tiny_model)), SMALL)
    stir(lm)
    plain = merged(lm, tiny_model)
    if kind == "policy":
        networks: list[Any] = [Policy(each, 0.7, checkpointing) for each in (lm, plain)]
        out, expected = (network(batch)[0] for network in networks)
    else:
        networks = [Critic.from_pretrained(each, checkpointing) for each in (lm, plain)]
        for network in networks:
            torch.nn.init.constant_(network.head.weight, 0.3)
        out, expected = (network(batch) for network in networks)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    (out * torch.arange(13)).sum().backward()  # 4 + 3 + 6 sampled tokens
    (expected * torch.arange(13)).sum().backward()
    dense = {name: p.grad for name, p in plain.named_parameters()}
    got = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    weights = dict(lm.named_parameters())
    pairs = [name.replace(".lora_A.default.weight", "") for name in weights if ".lora_A." in name]
    assert len(pairs) == 2 * 7  # layers, each with q, k, v, o, gate, up, down
    assert len(got) == 2 * len(pairs)
    for name in pairs:
        a, b = (f"{name}.lora_{letter}.default.weight" for letter in "AB")
        g = dense[f"{name}.weight"]
        torch.testing.assert_close(got[a], 2 * weights[b].T @ g, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got[b], 2 * g @ weights[a].T, rtol=1e-4, atol=1e-4)


def test_one_base_under_all_networks(tiny_model: Path, batch: Batch) -> None:
    module = PPO(str(tiny_model), lora=SMALL, kl_coef=0.1)
    assert module.reference is not None
    assert all(part.training for part in module.modules())  # transformers checkpoints no gradients in evaluation mode
    base = dict(module.reference.lm.named_parameters())
    for network in (module.policy.lm, module.critic.trunk):
        shared = [p for name, p in network.named_parameters() if ".lora_" not in name]
        assert {id(p) for p in shared} <= {id(p) for p in base.values()}
    # 14 layers: q, k, v, o of 32×32, gate, up and down between 32 and 96; twice, and a head of 32 + 1
    adapters = 2 * (4 * 4 * (32 + 32) + 3 * 4 * (32 + 96))
    assert [sum(p.numel() for p in group["params"]) for group in module.configure_optimizers().param_groups] == [
        adapters, adapters + 33,
    ]  # fmt: skip
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in base.values()) + 2 * adapters + 33
    # No network disturbs another, whatever its adapters say.
    stir(module.policy)
    expected = Policy(str(tiny_model)).eval()(batch)[0]
    module.policy(batch)
    module.critic(batch)
    torch.testing.assert_close(module.reference(batch)[0], expected, rtol=0, atol=0)


def test_weights_are_added_out_of_place_and_made_anew(tiny_model: Path) -> None:
    base = load_model(str(tiny_model))
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    lm = adapted(base, LoRA(r=2, alpha=3, target_modules=["v_proj"]))
    stir(lm)
    weights = Weights(lm)
    assert list(weights) == list(before)
    for name, weight in weights.items():
        if not name.endswith("v_proj.weight"):
            assert weight.data_ptr() == dict(base.named_parameters())[name].data_ptr()
            continue
        layer = lm.get_submodule(name.removesuffix(".weight"))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(weight, before[name] + 3 / 2 * b @ a)
        assert weights[name].data_ptr() != weight.data_ptr()
        assert not weight.requires_grad
    assert all(p.equal(before[name]) for name, p in base.named_parameters())


def test_layers_that_keep_their_weights_the_other_way_round(batch: Batch) -> None:
    config = GPT2Config(
        vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    base = GPT2LMHeadModel(config)
    base.set_attn_implementation("wmact_packed")
    lm = adapted(base, SMALL)
    stir(lm)
    plain = GPT2LMHeadModel(config)
    plain.set_attn_implementation("wmact_packed")
    plain.load_state_dict(dict(Weights(lm)), strict=False)
    torch.testing.assert_close(Policy(lm)(batch)[0], Policy(plain)(batch)[0], rtol=0, atol=1e-5)
    assert (Policy(base)(batch)[0] - Policy(lm)(batch)[0]).abs().max() > 1e-3


def test_fingerprints(tiny_model: Path) -> None:
    first, second = (load_model(str(tiny_model)) for _ in range(2))
    found = {int(fingerprint(first))}
    assert int(fingerprint(second)) in found
    weights = {name: p.detach().clone() for name, p in second.named_parameters()}
    for change in (
        lambda norm: norm[3].add_(1e-6),
        lambda norm: norm.add_(0.5),  # 32 equal numbers stay equal
        lambda norm: norm[:2].copy_(torch.tensor([1.0, 2.0])),
        lambda norm: norm[:2].copy_(torch.tensor([2.0, 1.0])),
    ):
        second.load_state_dict(weights, strict=False)
        change(second.model.norm.weight.data)
        found.add(int(fingerprint(second)))
    assert len(found) == 5


# Whole runs


@pytest.fixture(autouse=True)
def called_from_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["wmact"])
    monkeypatch.chdir(tmp_path)


WORDS = ["--model.lora", '{"r": 4, "alpha": 8}', "--model.entropy_coef", "1.0", "--model.max_mismatch_kl", "1e-6"]


def fit(folder: Path, model: str, *words: str, **changes: Any) -> Path:
    """Train; the folder of the run."""
    config = tiny_worlds.write_settings(folder / "doors.yaml", model, max_logprob_gap=1e-4, **changes)
    cli.main(["fit", "--config", config, *WORDS, "--trainer.check_val_every_n_epoch", "100", *words])
    return folder / "runs" / "doors" / "version_0"


@pytest.fixture
def doors(tmp_path: Path) -> str:
    return tiny_worlds.write_model(tmp_path / "model")


def saved(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("engine", ["TransformersEngine", "VLLMEngine"])
def test_the_engine_follows_the_adapters(engine: str, tiny_model: Path, tmp_path: Path) -> None:
    """After each of four syncs its log-probabilities are the trainer's; those of the base are far off by then."""
    if engine == "VLLMEngine":
        pytest.importorskip("vllm")
    settings = {"class_path": f"wmact.engines.{engine}", "init_args": {"dtype": "float32"}}
    run = fit(tmp_path, str(tiny_model), engine=settings)
    with (run / "metrics.csv").open() as file:
        gaps = [float(row["stability/mismatch_max"]) for row in csv.DictReader(file) if row["stability/mismatch_max"]]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
    state = saved(run)["state_dict"]
    moved = [float(v.abs().max()) for name, v in state.items() if ".lora_B." in name and name.startswith("policy")]
    assert min(moved) > 0.01  # four steps of Adam of up to 0.01


def test_an_engine_without_the_adapters_is_found_out(
    doors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Weights, "__getitem__", lambda self, name: self._parameters[name].detach())
    with pytest.raises(SystemExit, match="1"):
        fit(tmp_path, doors)
    assert "the engine does not hold these weights" in capsys.readouterr().err


def test_a_checkpoint_holds_what_is_trained(doors: str, tmp_path: Path) -> None:
    checkpoint = saved(fit(tmp_path, doors, "--model.kl_coef", "0.1", "--trainer.max_epochs", "1"))
    names = {name for name in checkpoint["state_dict"] if ".lora_A." not in name and ".lora_B." not in name}
    assert names == {"skipped", "base_model", "critic.head.weight", "critic.head.bias"}
    assert checkpoint["hyper_parameters"]["lora"] == {"r": 4, "alpha": 8, "target_modules": None}
    trained = [
        checkpoint["state_dict"][name] for name in checkpoint["state_dict"] if name.startswith(("policy", "cri"))
    ]
    (optimizer,) = checkpoint["optimizer_states"]
    averages = [state["exp_avg"] for state in optimizer["state"].values()]
    assert sorted(tuple(a.shape) for a in averages) == sorted(tuple(t.shape) for t in trained)


def export_of(run: Path, target: str) -> dict[str, Tensor]:
    """The exported weights, as any user loads them."""
    export(run / "checkpoints" / "last.ckpt", Path(target).absolute())
    return dict(AutoModelForCausalLM.from_pretrained(target).named_parameters())


def test_the_exported_model_is_the_one_that_was_trained(tiny_model: Path, tmp_path: Path) -> None:
    run = fit(tmp_path, str(tiny_model), "--trainer.max_epochs", "2")
    module = PPO(str(tiny_model), lora=SMALL)
    module.load_state_dict(saved(run)["state_dict"], strict=False)
    exported, start = export_of(run, "out"), dict(load_model(str(tiny_model)).named_parameters())
    assert exported.keys() == module.weights().keys()
    for name, weight in exported.items():
        assert weight.equal(module.weights()[name]), name
        assert weight.equal(start[name]) == (not name.endswith("_proj.weight")), name
    assert "LoRA, rank 4, alpha 8" in Path("out/README.md").read_text()


def test_demonstrations_train_adapters_too(tiny_model: Path, tmp_path: Path) -> None:
    data = DemonstrationData(
        batches=2,
        episodes_a_batch=2,
        model=str(tiny_model),
        worlds={"maze": World(EnvSpec(kwargs={"layout": "cells"}))},
        max_turns=1,
        tell_rules=False,
        limits=Limits(turn_tokens=128, episode_tokens=400),
    )
    module = SFT(str(tiny_model), lr=1e-2, save_to=str(tmp_path / "out"), lora=LoRA(r=4, target_modules=["q_proj"]))
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data)  # fmt: skip
    start = dict(load_model(str(tiny_model)).named_parameters())
    for name, weight in AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters():
        assert weight.equal(module.weights()[name]), name
        assert weight.equal(start[name]) == ("q_proj" not in name), name


# Bad input


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(words))
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ('{"target_modules": ["q_prj"]}', ["model.lora.target_modules: 'q_prj'", "there are q_proj, k_proj, v_proj"]),
        ('{"target_modules": ["q_proj", "wq"]}', ["'wq' is no linear layer"]),
        ('{"target_modules": ["embed_tokens"]}', ["'embed_tokens' is no linear layer"]),
        ('{"r": 0}', ["model.lora.r=0: must be above 0"]),
        ('{"alpha": -1}', ["model.lora.alpha=-1: must be above 0"]),
        ('{"rank": 4}', ["model.lora", "rank"]),
        ('{"r": 2.5}', ["model.lora", "2.5"]),
    ],
)
def test_adapters_that_cannot_be(
    lora: str, words: list[str], doors: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_worlds.write_settings(tmp_path / "doors.yaml", doors)
    line = refused(capsys, "fit", "--config", config, "--model.lora", lora)
    assert all(word in line for word in words), line


def test_a_tied_output_layer_has_none(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"'lm_head' is no linear layer, or tied to the embedding; there are q_proj"):
        adapted(load_model(str(tiny_model)), LoRA(target_modules=["lm_head"]))


def test_random_weights_have_none(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.from_scratch=True with model\.lora: "):
        SFT(str(tiny_model), from_scratch=True, lora=LoRA())


def test_without_peft(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"^model\.lora needs peft: pip install .* -e '\.\[lora\]'$"):
        PPO(str(tiny_model), lora=LoRA())


def test_a_run_cannot_go_on_otherwise(doors: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With other adapters, without, or over another base than the one they were trained for."""
    run = fit(tmp_path, doors, "--trainer.max_epochs", "1")
    go_on = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    line = refused(capsys, *go_on, "--model.lora.alpha", "16")
    assert "trained by wmact.ppo.PPO with lora={'r': 4, 'alpha': 8" in line
    assert "but model is PPO with lora={'r': 4, 'alpha': 16" in line
    assert line.endswith("'target_modules': None}; give it with the config.yaml of its run")
    assert "PPO with lora=None" in refused(capsys, *go_on, "--model.lora", "null")
    model = AutoModelForCausalLM.from_pretrained(doors)
    with torch.no_grad():
        model.model.norm.weight += 0.1
    model.save_pretrained(doors)
    assert "has adapters for another base" in refused(capsys, *go_on)
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert "the adapters are for another base model" in refused(capsys, "export", checkpoint, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
