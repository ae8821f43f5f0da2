"""Paints a kitchen anew for every picture, so that a backbone goes by shapes and not by colours."""

import numpy as np

from deas_vla.envs.robocasa.kitchen import KitchenEnv

ROBOT = ("robot", "gripper", "mobilebase")  # its bodies, by robosuite's prefixes


class Painter:
    """Paints an episode's kitchen anew: its materials in other colours, and other light."""

    def __init__(self, env: KitchenEnv) -> None:
        self._model = model = env.kitchen.sim.model._model
        self._plain = {
            name: getattr(model, name).copy() for name in ("mat_rgba", "geom_rgba", "light_diffuse")
        }
        names = [model.body(k).name for k in model.geom_bodyid]
        self._kept = np.array([name.startswith(ROBOT) for name in names])

    def paint(self, rng: np.random.Generator) -> None:
        """For the next picture; one in three is of the kitchen as it is.

        Materials get darker, for a texture can't be lighter, and of another hue. The robot stays.
        """
        for name, plain in self._plain.items():
            getattr(self._model, name)[:] = plain
        if rng.random() < 1 / 3:
            return
        strength = rng.uniform()
        for name, kept in (("mat_rgba", None), ("geom_rgba", self._kept)):
            plain = self._plain[name]
            colours = plain.copy()
            dark = rng.uniform(0.3, 1.1, (len(colours), 1)) ** strength
            hue = rng.uniform(0.7, 1.1, (len(colours), 3))
            colours[:, :3] = np.clip(colours[:, :3] * dark * hue, 0, 1)
            if kept is not None:
                colours[kept] = plain[kept]
            getattr(self._model, name)[:] = colours
        lamps = self._plain["light_diffuse"]
        self._model.light_diffuse[:] = lamps * rng.uniform(0.7, 1.2, (len(lamps), 1))
