"""What a dataset holds, in numbers: for model cards."""

import numpy as np

from deas_vla.data.episodes import EpisodeTable


def task_counts(table: EpisodeTable) -> list[dict[str, str | int]]:
    """Of each instruction: ``instruction``, ``episodes``, ``successful_episodes``."""
    first = table.task_index[table.episode_start]  # (E,)
    return [
        {
            "instruction": table.tasks[int(index)],
            "episodes": int((first == index).sum()),
            "successful_episodes": int(table.episode_success[first == index].sum()),
        }
        for index in np.unique(first)
    ]
