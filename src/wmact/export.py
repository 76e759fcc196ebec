"""A trained policy as a Hugging Face folder, which every tool takes that takes models.

    python -m wmact export runs/maze/version_0/checkpoints/last.ckpt maze-agent
    python -m wmact export runs/maze/version_0/checkpoints/last.ckpt maze-agent --test runs/maze/version_1

The folder has the weights in safetensors, the tokenizer with its chat template, a generation config with the sampling
of the training, a model card (README.md) with what the run and its last evaluation say of it, and wmact.json, which
tells `python -m wmact play` how the model is used to playing. With --test the card also has the figures of a `test` of
these weights. The folder appears when everything is in it, or not at all.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from wmact.callbacks import read_episodes
from wmact.card import Exported, environments, evaluated, model_card, public
from wmact.chat import Chat
from wmact.checkpoints import read_checkpoint
from wmact.commands import CommandParser
from wmact.files import new_folder
from wmact.loggers import run_folder_of
from wmact.lora import LoRA, Weights, adapted, fingerprint
from wmact.models import load_model, load_tokenizer, resolve_model
from wmact.settings import read_yaml
from wmact.terms import terms_of, write_terms

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAYED = ("tell_rules", "max_turns", "limits", "temperature")
"""Settings of the data that are `Terms` too."""
NEEDED = (
    *("seed_everything", "trainer", "model.class_path", "model.init_args.model"),
    *(f"data.init_args.{name}" for name in (*PLAYED, "groups", "samples", "rescale", "step_penalty")),
)
"""Keys that the configuration of every run has."""
POLICY = "policy.lm."
"""What the names of the policy's weights begin with in a checkpoint."""


def read_config(run: Path) -> dict[str, Any]:
    """Read the configuration of a run, as `fit` and `test` wrote it.

    Raises:
        ValueError: there is none, or it is no such configuration.
    """
    path = run / "config.yaml"
    config = read_yaml(path)
    for key in NEEDED:
        found = config
        for name in key.split("."):
            if not isinstance(found, dict) or name not in found:
                raise ValueError(f"{path}: there is no {key}, so it is not the configuration of a run")
            found = found[name]
    if not {"env", "worlds", "triplets"} & config["data"]["init_args"].keys():
        raise ValueError(f"{path}: there is no data.init_args.env, so it is not the configuration of a run")
    return config


def load_policy(checkpoint: dict[str, Any], model: str, dtype: torch.dtype | None, trusted: bool) -> PreTrainedModel:
    """Return the policy of a checkpoint as a model of transformers; it cannot compute, only be saved.

    Adapters are added to the weights of the base model.

    Args:
        checkpoint: as `read_checkpoint` returns it.
        model: the base model, of which the configuration is taken, and weights only where there are adapters.
        dtype: of the weights; None leaves that of the checkpoint.
        trusted: run code that comes with the base model.

    Raises:
        ValueError: the checkpoint has no policy, or one that is not of this model or not for it.
    """
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(POLICY): weight for name, weight in state.items() if name.startswith(POLICY)}
    if not weights:
        raise ValueError(f"the checkpoint holds no policy: none of its weights is named {POLICY}…")
    if lora := checkpoint.get("hyper_parameters", {}).get("lora"):
        return _merged(load_model(model, trusted), LoRA(**lora), state["base_model"], weights, dtype)
    dtype = dtype or next(weight.dtype for weight in weights.values() if weight.is_floating_point())
    config = AutoConfig.from_pretrained(resolve_model(model), trust_remote_code=trusted)
    with torch.device("meta"):  # the weights are those of the checkpoint: none is drawn, none held twice
        policy = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    try:
        policy.load_state_dict(
            {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()},
            assign=True,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the policy does not fit its base model {model!r}; was that replaced? ({reason})") from None
    policy.tie_weights()
    return policy


def _merged(
    base: PreTrainedModel, lora: LoRA, known: torch.Tensor, adapters: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> PreTrainedModel:
    if not torch.equal(fingerprint(base), known):
        raise ValueError("the adapters are for another base model than the one that is there now; was it replaced?")
    network = adapted(base, lora)
    network.load_state_dict(adapters, strict=False)
    weights = Weights(network)
    for name, parameter in base.named_parameters():
        parameter.data = weights[name].to(dtype or parameter.dtype)
    return base


def check_tokenizer(chat: Chat, run: Path) -> None:
    """Refuse a tokenizer that reads the run's first episode otherwise than it was read when it was played.

    A base model may have been replaced since. Its tokens would be others, and the weights would still fit.

    Raises:
        ValueError: it does.
    """
    path = run / "episodes.jsonl"
    for record in itertools.islice(read_episodes(path), 1) if path.is_file() else ():
        for turn in record["turns"] if "ids" in record else ():
            if chat.decode(record["ids"][turn["start"] : turn["end"]]) != turn["text"]:
                raise ValueError(
                    f"the base model's tokenizer is not the one that {path} was played with: give the base model back "
                    "the tokenizer it had, else the exported model would read and write other words"
                )


def read_test(test: Path, ckpt: Path, checkpoint: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a test and its configuration.

    Raises:
        ValueError: it is no `test`, or none of these weights, or nobody can tell.
    """
    config, log = read_config(test), test / "episodes.jsonl"
    first = next(read_episodes(log), {}) if log.is_file() else {}
    if first.get("variant") is None or not evaluated(test):  # what validate and fit write has no variant
        raise ValueError(f"--test {test}: not the folder of a `test` with episodes.jsonl and metrics.csv")
    tested = Path(config.get("ckpt_path") or "")
    again = f"test {ckpt} again"
    if not tested.is_file():
        raise ValueError(f"--test {test}: the checkpoint that it tested, {tested}, is not there any more: {again}")
    if tested.stat().st_mtime > (test / "metrics.csv").stat().st_mtime:
        raise ValueError(f"--test {test}: the checkpoint that it tested, {tested}, was written anew since: {again}")
    if not tested.samefile(ckpt):
        ours, theirs = checkpoint["state_dict"], read_checkpoint(str(tested))["state_dict"]
        names = {name for name in [*ours, *theirs] if name.startswith(POLICY)}
        if not all(name in ours and name in theirs and torch.equal(ours[name], theirs[name]) for name in names):
            raise ValueError(f"--test {test}: it tested other weights, {tested}: {again}")
    return test, config


def export(ckpt: Path, target: Path, test: Path | None = None, dtype: torch.dtype | None = None) -> list[str]:
    """Write the policy of a checkpoint as the Hugging Face folder `target`.

    Args:
        ckpt: in the folder of its run, whose configuration and metrics are read too.
        test: folder of a test of these weights.
        dtype: of the weights; None leaves that of the checkpoint.

    Returns:
        The names of the environment's arguments that are not `public`: the folder does not tell them.

    Raises:
        ValueError: something of it cannot be read, or does not belong together.
        OSError: the folder cannot be written.
    """
    run = run_folder_of(ckpt)
    if run is None:
        raise ValueError(f"{ckpt}: a checkpoint is exported from its run, as RUN/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(str(ckpt))
    config = read_config(run)
    init, data = config["model"]["init_args"], config["data"]["init_args"]
    terms = terms_of({name: data[name] for name in PLAYED}, run / "config.yaml")
    if "triplets" in data:
        terms = replace(terms, tell_rules=False)  # a prediction's prompt holds what is told (`environments`)
    played = environments(data)
    told = [replace(spec, kwargs=public(spec.kwargs)) for spec in played]
    model, trusted = str(init.get("model")), init.get("trust_remote_code") is True
    tokenizer = load_tokenizer(model, trusted, init.get("chat_template"))
    chat = Chat(tokenizer)
    check_tokenizer(chat, run)
    policy = load_policy(checkpoint, model, dtype, trusted)
    policy.generation_config = GenerationConfig(
        do_sample=True,
        temperature=terms.temperature,
        top_p=1.0,
        top_k=0,  # all: the default of transformers is 50
        eos_token_id=list(chat.stop_token_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    card = model_card(
        Exported(
            title=target.name,
            config=config,
            checkpoint=checkpoint,
            run=run,
            test=read_test(test, ckpt, checkpoint) if test else None,
            parameters=sum(parameter.numel() for parameter in policy.parameters()),
            dtype=str(policy.dtype).removeprefix("torch."),
        )
    )
    try:
        with new_folder(target) as folder:
            policy.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_terms(folder, replace(terms, envs=told))
            (folder / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:200]
        raise OSError(f"{target} cannot be written ({reason}); nothing is left of it") from error
    pairs = [(before.kwargs, after.kwargs) for before, after in zip(played, told, strict=True)]
    return [name for before, after in pairs for name in before if name not in after or after[name] != before[name]]


def main(args: Sequence[str]) -> None:
    """Export what the command line names.

    Raises:
        ValueError: something of it cannot be read, or does not belong together.
        OSError: the folder cannot be written.
    """
    parser = CommandParser("export", __doc__)
    parser.add_argument("ckpt", type=Path, metavar="CKPT", help="checkpoint of a run: RUN/checkpoints/last.ckpt")
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder to write; it must not be there, or be empty")
    parser.add_argument("--test", type=Path, metavar="RUN", help="folder of a test of this checkpoint, for the card")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (as in the checkpoint)")
    options = parser.parse_args(args)
    untold = export(options.ckpt, options.dir.absolute(), options.test, DTYPES.get(options.dtype))
    print(options.dir)
    if untold:
        print(f"it does not tell the environment's {', '.join(untold)}, which may be private: give it to play again")
