"""The model card of an exported model: what it was trained on, how well it does, what it is not.

Every word of it is ours or one that `public` has let through: a configuration may hold paths and keys, a card is for
everyone.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

import wmact
from wmact import smollm2
from wmact.environments import EnvSpec, Variant
from wmact.loggers import read_metrics
from wmact.models import BUNDLED
from wmact.report import table
from wmact.results import size
from wmact.settings import changes, read_yaml
from wmact.view import markdown

TEMPLATE = Path(__file__).parent / "assets" / "card.md"

PLAIN = re.compile(r"[A-Za-z0-9][\w.+:-]{0,79}(/[A-Za-z0-9][\w.+-]{0,79})?")
"""Names of classes, environments, models and choices. A path has more slashes, or begins with another character."""
SECRET = re.compile(r"(?=\w*\d)(?=\w*[A-Za-z])\w{20,}")
"""What keys look like: no name has so many letters and digits in a row."""
SECRET_NAME = re.compile(r"(token|secret|password|passwd|key|credentials?|auth)$", re.IGNORECASE)


@dataclass(frozen=True)
class Exported:
    """What a card is written from.

    title: name of the folder.
    config: of the run, as in its config.yaml.
    checkpoint: as `read_checkpoint` returns it.
    run: folder of the run.
    test: folder of a test of these weights, and its config; None if there was none.
    parameters: how many the model has.
    dtype: of the exported weights, as in "float32".
    """

    title: str
    config: dict[str, Any]
    checkpoint: dict[str, Any]
    run: Path
    test: tuple[Path, dict[str, Any]] | None
    parameters: int
    dtype: str


def public(value: Any, name: str = "") -> Any:
    """Return a setting as everyone may see it: numbers and plain names, alone, in lists and in mappings.

    Returns:
        The same with what is not public left out of mappings, and None in its place elsewhere.
    """
    if SECRET_NAME.search(name):
        return None
    if isinstance(value, Mapping):
        shown = {key: public(each, key) for key, each in value.items() if public(key) is not None}
        return {key: each for key, each in shown.items() if each is not None or value[key] is None}
    if isinstance(value, list | tuple):
        return [public(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and not SECRET.search(value)
    return value if plain else None


def model_card(exported: Exported) -> str:
    """Return the card, as Markdown with metadata for the hub."""
    init = exported.config["model"]["init_args"]
    base, hub = base_model(init["model"])
    nano = init["model"] in BUNDLED
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    metadata |= {"base_model": base} if hub else {}  # the hub takes it for one of its own
    metadata |= {"license": "apache-2.0"} if nano else {}
    metadata["tags"] = ["wmact", "reinforcement-learning", "text-game-agent"]
    config = exported.config
    trainer = {name: config["trainer"].get(name) for name in ("precision", "max_epochs", "devices")}
    settings = {name: config.get(name) for name in ("seed_everything", "annealing", "model", "data")}
    settings |= {"model": config["model"] | {"init_args": init | {"model": base}}, "trainer": trainer}
    licence = f"The weights derive from {base}, whose licence governs them. wmact itself is under Apache-2.0."
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        title=exported.title,
        summary=f"A language model of {size(exported.parameters)} parameters that plays text environments.",
        version=wmact.__version__,
        training="\n".join(table(["", ""], [[name, text] for name, text in facts(exported).items()])),
        evaluation=evaluations(exported),
        env=environment(environments(config["data"]["init_args"])[0], args=False),
        dtype=exported.dtype,
        base_limits=NANO_LIMITS if nano else "",
        settings=markdown(yaml.safe_dump(public(settings), sort_keys=False).rstrip()),
        licence="The weights are under Apache-2.0, as wmact is." if nano else licence,
    )


PREDICTION = "wmact.rwml:wmact/Prediction-v0"

NANO_LIMITS = """\
- It knows no English. `nano` has a vocabulary of a few hundred words, in which the environments of wmact are told, and
  what is seen with it says nothing about how large models behave.
"""


def base_model(model: str) -> tuple[str, bool]:
    """Return the name of what was trained, without where it lay, and whether it is a hub id."""
    if model in BUNDLED:
        return model, False
    if model == "smollm2":
        return smollm2.ORIGIN, True
    return (Path(model).name, False) if Path(model).expanduser().is_dir() else (model, True)


def environments(data: Mapping[str, Any]) -> list[EnvSpec]:
    """Return the environments that were trained on: one of a rollout, those demonstrated, or one of predictions."""
    if "triplets" in data:
        asked = {name: data[name] for name in ("kinds", "history", "tag") if name in data}
        return [EnvSpec(PREDICTION, asked | {"told": data["tell_rules"]})]
    worlds = data.get("worlds")
    return [EnvSpec(**spec) for spec in ([world["env"] for world in worlds.values()] if worlds else [data["env"]])]


def environment(spec: EnvSpec, args: bool = True) -> str:
    """Tell an environment, by default with its arguments."""
    told = str(public(spec.id) or "(not named)").removeprefix("wmact_envs:")
    kwargs = ", ".join(f"{name}={value}" for name, value in public(spec.kwargs).items())
    return f"{told} ({kwargs})" if args and kwargs else told


def facts(exported: Exported) -> dict[str, str]:
    """Tell the training in a few words each."""
    config, checkpoint = exported.config, exported.checkpoint
    data, steps = config["data"]["init_args"], batches(checkpoint)
    known = {
        "environment": "; ".join(map(environment, environments(data))),
        "algorithm": str(public(config["model"]["class_path"])),
        "base model": base_model(config["model"]["init_args"]["model"])[0],
    }
    if lora := config["model"]["init_args"].get("lora"):
        known["adapters"] = f"LoRA, rank {lora['r']}, alpha {lora['alpha']}, added to the weights"
    if "episodes_a_batch" in data:
        known["training"] = f"{steps:,} steps, each on {data['episodes_a_batch']} demonstrated episodes"
    else:
        known["training"] = f"{steps:,} iterations of {data['groups']} levels × {data['samples']} episodes"
        schedule = config.get("annealing") or {}
        kwargs = ", ".join(f"{name}={value}" for name, value in public(schedule.get("init_args") or {}).items())
        reached = checkpoint.get("RolloutData", {}).get("turn_budget", data["max_turns"])
        known["turn budget"] = f"{data['max_turns']} turns at first, {reached} at the end" + (
            f" ({str(public(schedule.get('class_path'))).rpartition('.')[2]}: {kwargs})" if schedule else ""
        )
        known["reward"] = "outcome × share of effective actions (WMAct)" if data["rescale"] else "outcome"
        known["reward"] += f", less {data['step_penalty']:g} for every action" if data["step_penalty"] else ""
    if changed := changed_on_the_way(exported):
        known["changed on the way"] = f"{changed}; told here and below is what holds at the end"
    return known | {
        "rules": "told in the first message" if data["tell_rules"] else "not told",
        "sampling": f"temperature {data['temperature']:g}, at most {data['limits']['turn_tokens']} tokens a reply",
        "seed": str(config["seed_everything"]),
        "weights": f"{exported.parameters:,} parameters, {exported.dtype}",
    }


def changed_on_the_way(exported: Exported) -> str:
    """Tell which settings of a resumed run are not those that it began with, and from where on."""
    before = {int(path.stem.rpartition("_")[2]): path for path in exported.run.glob("config_until_*.yaml")}
    dones = sorted(done for done in before if done <= batches(exported.checkpoint))
    configs = [*(read_yaml(before[done]) for done in dones), exported.config]
    pairs = zip(dones, itertools.pairwise(configs), strict=True)
    return "; ".join(f"after {done:,}: {', '.join(filter(public, changes(*pair)))}" for done, pair in pairs)


def batches(checkpoint: Mapping[str, Any]) -> int:
    """Return how many batches were trained on: what metrics.csv counts, where `global_step` counts optimizer steps."""
    loops = checkpoint["loops"]["fit_loop"]
    return int(loops["epoch_loop.state_dict"]["_batches_that_stepped"])


def evaluations(exported: Exported) -> str:
    """Tell the last evaluation of the training, and that of a test, each in a table."""
    steps = batches(exported.checkpoint)
    rows = {step: row for step, row in evaluated(exported.run).items() if step <= steps}
    parts = []
    if exported.test:
        folder, config = exported.test
        tested = list(evaluated(folder).values())[-1]
        parts.append("Test of these weights:\n\n" + _table(tested, config["data"]["init_args"], "test"))
    if rows:
        done = max(rows)
        whose = "these weights" if done == steps else f"not these weights, but those after {done:,} of {steps:,} steps"
        lead = f"Last evaluation during the training ({whose}):\n\n"
        parts.append(lead + _table(rows[done], exported.config["data"]["init_args"], "val"))
    return "\n\n".join(parts) or "None was recorded."


def evaluated(run: Path) -> dict[int, dict[str, str]]:
    """Return the rows of a run's metrics.csv that have an evaluation, by step, ascending."""
    return {step: row for step, row in sorted(read_metrics(run / "metrics.csv").items()) if _variants(row)}


def _variants(row: Mapping[str, str]) -> list[str]:
    return [found[1] for name in row if (found := re.fullmatch(r"eval/(.+)/single_turn", name))]


def _table(row: Mapping[str, str], data: Mapping[str, Any], stage: str) -> str:
    budget = data["max_turns"]
    lines = []
    for variant in _variants(row):
        spec = (data.get(stage) or {}).get(variant)
        told = str(public(variant) or "(not named)")
        told += f": {environment(Variant(**spec).of(environments(data)[0]))}" if spec else ""
        cells = [f"{float(row[f'eval/{variant}/levels']):,.0f}"]
        for name in ("single_turn", "multi_turn"):
            value, low, high = (float(row[f"eval/{variant}/{name}{end}"]) for end in ("", "_low", "_high"))
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        lines.append([told, *cells])
    return "\n".join(table(["", "levels", "success in one turn", f"success within {budget} turns"], lines))
