"""How far a run has got: a bar over iterations on a terminal, otherwise one line an iteration."""

import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SHOWN = {
    "success {:.2f}": "train/success",
    "single-turn {:.2f}": "eval/standard/single_turn",
    "L_max {:.0f}": "train/turn_budget",
    "reward {:.2f}": "train/reward_scaled",
    "N_eff/N {:.2f}": "train/effective_share",
    "{:,.0f} tok/s": "performance/tokens_per_second",
}
"""Figure of a line of progress → the metric it is read from."""

SHOWN_OF_EVAL = {
    "single-turn {:.3f}": "single_turn",
    "multi-turn {:.3f}": "multi_turn",
    "turns {:.1f}": "turns_mean",
    "N_eff/N {:.2f}": "effective_share",
}
"""Figure of a line of evaluation → the metric below ``eval/<variant>/``."""

TABLE = {
    "levels": "{levels:,.0f}",
    "single-turn success": "{single_turn:.3f} [{single_turn_low:.3f}, {single_turn_high:.3f}]",
    "multi-turn success": "{multi_turn:.3f} [{multi_turn_low:.3f}, {multi_turn_high:.3f}]",
    "turns": "{turns_mean:.2f}",
    "actions": "{actions_mean:.2f}",
    "N_eff/N": "{effective_share:.2f}",
    "length over optimal": "{length_over_optimal:.2f}",
    "tokens": "{tokens_mean:.0f}",
    "errors": "{errors:.3f}",
}
"""Row of the table of an evaluation → what stands in it; below them, success at every budget of the curve."""

KNOWN = {
    "asked: next place right": "{world_model/question_exact:.3f}",
    "asked: changes anything": "{world_model/question_effect:.3f}",
    "thought: next place right": "{world_model/thought_exact:.3f}",
    "thought: changes anything": "{world_model/thought_effect:.3f}",
    "thought: begins where it is": "{world_model/thought_opening:.3f}",
    "thought: simulated moves": "{world_model/thought_moves:.1f}",
    "predicted: reward": "{world_model/reward:.3f}",
    "predicted: exact": "{world_model/exact:.3f}",
    "predicted: same things": "{world_model/entities:.3f}",
    "predicted: same states": "{world_model/states:.3f}",
    "predicted: not at all": "{world_model/missing_tag:.3f}",
    "predicted: cut off": "{world_model/truncated:.3f}",
    "predicted: length over true": "{world_model/length:.2f}",
    "groups without variance": "{world_model/zero_variance:.3f}",
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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of a validation; on its own, outside a fit, the command line prints them."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.print(eval_line(trainer.current_epoch + self._trained, trainer.callback_metrics))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of an iteration."""
        if self._trained:
            self._show(trainer.current_epoch + 1, trainer.max_epochs, progress_figures(trainer.callback_metrics))
        self._trained = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that the message stands below it."""
        self._close()

    def _show(self, iteration: int, total: int | None, figures: list[str]) -> None:
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
    figures = [text.format(float(metrics[name])) for text, name in SHOWN.items() if name in metrics]
    seconds = {part: metrics.get(f"performance/{part}_seconds") for part in ("rollout", "update")}
    spent = " + ".join(f"{float(s):.1f} s {part}" for part, s in seconds.items() if s is not None)
    return figures + [spent] * bool(spent)


def eval_line(iterations: int, metrics: Mapping[str, Any]) -> str:
    """Tell a validation after so many iterations in one line, variant by variant."""
    variants = dict.fromkeys(
        name.split("/")[1] for name in metrics if name.startswith("eval/") and "/world_model/" not in name
    )
    line = f"evaluation after {iterations} iterations"
    for variant in variants:
        values = {text: metrics.get(f"eval/{variant}/{name}") for text, name in SHOWN_OF_EVAL.items()}
        line += "  ".join([f"  {variant}:", *(text.format(float(v)) for text, v in values.items() if v is not None)])
    return line


def eval_table(metrics: Mapping[str, Any]) -> str:
    """Tell a validation or test as a table with a column a variant; rows that no variant has are left out."""
    figures: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        area, _, rest = name.removeprefix("eval/").partition("/")
        if name.startswith("eval/world_model/"):
            area, _, rest = rest.partition("/")
            figures.setdefault(area, {})[f"world_model/{rest}"] = float(value)
        elif name.startswith("eval/"):
            figures.setdefault(area, {})[rest] = float(value)
    curve = sorted({name for values in figures.values() for name in values if name.startswith("success_at/")})
    rows = TABLE | {f"success within {int(name.split('/')[1])}": f"{{{name}:.3f}}" for name in curve} | KNOWN
    table = [["", *figures]]
    for row, text in rows.items():
        cells = [_filled(text, values) for values in figures.values()]
        table += [[row, *cells]] if any(cells) else []
    ends = {name for values in figures.values() for name in values if name.startswith("category/")}
    for name in sorted(name.removesuffix("_levels") for name in ends if name.endswith("_levels")):
        cells = [_interval(name, values) if name in values else "" for values in figures.values()]
        table += [[f"success in {name.removeprefix('category/')}", *cells]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)


def _interval(name: str, values: Mapping[str, float]) -> str:
    return f"{values[name]:.3f} [{values[f'{name}_low']:.3f}, {values[f'{name}_high']:.3f}]"


def _filled(text: str, values: Mapping[str, float]) -> str:
    try:
        return text.format_map(values)
    except KeyError:
        return ""
