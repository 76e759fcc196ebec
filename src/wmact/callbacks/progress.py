"""How far a run has got: a bar over iterations on a terminal, otherwise one line an iteration."""

import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from wmact.view import columns

SHOWN = {
    "success {:.2f}": "train/success",
    "single-turn {:.2f}": "eval/standard/single_turn",
    "L_max {:.0f}": "train/turn_budget",
    "reward {:.2f}": "train/reward_scaled",
    "N_eff/N {:.2f}": "train/effective_share",
    "{:,.0f} tok/s": "performance/tokens_per_second",
}
"""Figure of a line of progress → the metric it is read from."""

OF_DEMONSTRATIONS = {"loss {:.3f}": "train/nll", "single-turn {:.2f}": "eval/standard/single_turn"}
"""The same of supervised training, whose episodes say nothing of the model."""

SHOWN_OF_EVAL = {
    "single-turn {:.3f}": "single_turn",
    "multi-turn {:.3f}": "multi_turn",
    "turns {:.1f}": "turns_mean",
    "N_eff/N {:.2f}": "effective_share",
}
"""Figure of a line of evaluation → the metric below ``eval/<variant>/``."""

OF_PREDICTIONS = {
    "reward {:.3f}": "reward",
    "exact {:.3f}": "exact",
    "no prediction {:.3f}": "missing_tag",
    "groups without variance {:.2f}": "zero_variance",
}
"""The same of predictions of next states → the metric below ``train/``, and below ``eval/world_model/<variant>/``.

A prediction is one turn and one action, so turns and effects say nothing of it.
"""


def share(name: str) -> str:
    """The template of a share with its interval."""
    return f"{{{name}:.3f}} [{{{name}_low:.3f}}, {{{name}_high:.3f}}]"


TABLE = {
    "levels": "{levels:,.0f}",
    "single-turn success": share("single_turn"),
    "multi-turn success": share("multi_turn"),
    "success of doing nothing": share("do_nothing"),
    **{f"pass^{k}": f"{{pass_hat_{k}:.3f}}" for k in range(1, 5)},
    "turns": "{turns_mean:.2f}",
    "actions": "{actions_mean:.2f}",
    "N_eff/N": "{effective_share:.2f}",
    "invalid actions": "{invalid_share:.3f}",
    "length over optimal": "{length_over_optimal:.2f}",
    "tokens": "{tokens_mean:.0f}",
    "errors": "{errors:.3f}",
}
"""Row of the table of an evaluation → what stands in it; below them, success at every budget of the curve."""

KNOWN = {
    "asked: next place right": share("world_model/question_exact"),
    "asked: changes anything": share("world_model/question_effect"),
    "thought: next place right": "{world_model/thought_exact:.3f}",
    "thought: changes anything": "{world_model/thought_effect:.3f}",
    "thought: begins where it is": "{world_model/thought_opening:.3f}",
    "thought: simulated moves": "{world_model/thought_moves:.1f}",
    "predicted: reward": share("world_model/reward"),
    "predicted: exact": share("world_model/exact"),
    "predicted: same things": share("world_model/entities"),
    "predicted: same states": share("world_model/states"),
    "predicted: not at all": share("world_model/missing_tag"),
    "predicted: cut off": share("world_model/truncated"),
    "predicted: length over true": "{world_model/length:.2f}",
    "groups without variance": share("world_model/zero_variance"),
}
"""The last rows: figures of `world_model.py` and of `wmact.rwml`."""


class IterationProgress(ProgressBar):
    """A bar over iterations on a terminal, otherwise one line an iteration; and a line after every validation.

    A DataModule may call `rollout_progress` while it plays; it finds this as ``trainer.progress_bar_callback``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None
        self._trained = False  # whether this epoch had a batch: Lightning may end one again on resume, without
        self._told = False  # whether its figures were shown

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._enabled:
            text = " ".join(map(str, args))
            self._bar.write(text) if self._bar is not None else print(text, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put up the bar, if there is a terminal to put it on."""
        if self._enabled and sys.stderr.isatty():
            total = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
            self._bar = tqdm(total=total, initial=trainer.current_epoch, unit="iteration", dynamic_ncols=True)

    def rollout_progress(self, done: int, total: int) -> None:
        """Show how many of the episodes now being played are done. Without a terminal it does nothing."""
        if self._bar is not None:
            self._bar.set_description(f"playing {done}/{total}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The rollout is over, the update begins."""
        if self._bar is not None:
            self._bar.set_description("training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The update is over."""
        self._trained = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of the iteration that it comes after."""
        self._tell(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of a validation; on its own, outside a fit, the command line prints them."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.print(eval_line(trainer.current_epoch + self._trained, trainer.callback_metrics))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of an iteration, if no validation has come between."""
        self._tell(trainer)
        self._trained = self._told = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that the message stands below it."""
        self._close()

    def _tell(self, trainer: Trainer) -> None:
        if not self._trained or self._told:
            return
        self._told = True
        iteration, total = trainer.current_epoch + 1, trainer.max_epochs
        figures = progress_figures(trainer.callback_metrics)
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(figures), refresh=False)
            self._bar.update()
        else:
            of = f"/{total}" if (total or -1) > 0 else ""
            self.print("  ".join([f"iteration {iteration}{of}", *figures]))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def progress_figures(metrics: Mapping[str, Any]) -> list[str]:
    """Tell an iteration in a few figures; those that were not logged are left out."""
    shown = OF_DEMONSTRATIONS if "train/nll" in metrics else SHOWN
    if "train/reward" in metrics:
        speed = {text: name for text, name in SHOWN.items() if name.startswith("performance/")}
        shown = {text: f"train/{name}" for text, name in OF_PREDICTIONS.items()} | speed
    figures = [text.format(float(metrics[name])) for text, name in shown.items() if name in metrics]
    seconds = {part: metrics.get(f"performance/{part}_seconds") for part in ("rollout", "update")}
    spent = " + ".join(f"{float(s):.1f} s {part}" for part, s in seconds.items() if s is not None)
    return figures + [spent] * bool(spent)


def eval_line(iterations: int, metrics: Mapping[str, Any]) -> str:
    """Tell a validation after so many iterations in one line, variant by variant."""
    told = [f"evaluation after {iterations} iterations"]
    for variant, values in _by_variant(metrics).items():
        shown = {text: f"world_model/{name}" for text, name in OF_PREDICTIONS.items()}
        shown = shown if _of_predictions(values) else SHOWN_OF_EVAL
        told += [f"{variant}:", *(text.format(values[name]) for text, name in shown.items() if name in values)]
    return "  ".join(told)


def eval_table(metrics: Mapping[str, Any]) -> str:
    """Tell a validation or test as a table with a column a variant; rows that no variant has are left out."""
    figures = _by_variant(metrics)
    for variant, values in figures.items():
        if _of_predictions(values):
            told = ("levels", "tokens_mean", "errors")
            kept = {name: value for name, value in values.items() if name in told or name.startswith("world_model/")}
            figures[variant] = kept
    curve = sorted({name for values in figures.values() for name in values if name.startswith("success_at/")})
    rows = TABLE | {f"success within {int(name.split('/')[1])}": f"{{{name}:.3f}}" for name in curve} | KNOWN
    ends = {name for values in figures.values() for name in values if name.startswith("category/")}
    for name in sorted(name.removesuffix("_levels") for name in ends if name.endswith("_levels")):
        rows[f"success in {name.removeprefix('category/')}"] = share(name)
    table = [["", *figures]]
    for row, text in rows.items():
        cells = [_filled(text, values) for values in figures.values()]
        table += [[row, *cells]] if any(cells) else []
    return "\n".join(columns(table))


def _by_variant(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Evaluation figures by variant; those of ``eval/world_model/<variant>/`` are called world_model/… there."""
    figures: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if name.startswith("eval/"):
            variant, _, figure = name.removeprefix("eval/").removeprefix("world_model/").partition("/")
            area = "world_model/" if name.startswith("eval/world_model/") else ""
            figures.setdefault(variant, {})[area + figure] = float(value)
    return figures


def _of_predictions(values: Mapping[str, float]) -> bool:
    return "world_model/reward" in values


def _filled(text: str, values: Mapping[str, float]) -> str:
    try:
        return text.format_map(values)
    except KeyError:
        return ""
