"""What accompanies a training run: the annealed turn budget, what the episodes were like, and how far it has got.

All of it happens in `on_train_batch_end`: one iteration is one batch, and what is logged there is on disk, and what is
counted there is in the state, before any checkpoint of the iteration is written. A resumed run then loses no row and
counts no episode twice. The hooks of an epoch's end are too late for the first and, with checkpoints saved at the end
of validation, for both: Lightning then calls `on_train_epoch_end` again on resume, without a batch.
"""

from wmact.callbacks.annealing import AdaptiveAnnealing, TurnAnnealing, TurnSchedule
from wmact.callbacks.episodes import EpisodeLog, EpisodeSamples, episode_of, read_episodes
from wmact.callbacks.progress import IterationProgress
from wmact.callbacks.rescaling import RewardRescalingLogger
from wmact.callbacks.saving import LastCheckpoint

__all__ = [
    "AdaptiveAnnealing",
    "EpisodeLog",
    "EpisodeSamples",
    "IterationProgress",
    "LastCheckpoint",
    "RewardRescalingLogger",
    "TurnAnnealing",
    "TurnSchedule",
    "episode_of",
    "read_episodes",
]
