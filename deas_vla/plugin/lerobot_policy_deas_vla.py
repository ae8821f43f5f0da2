"""What LeRobot's commands import of this project at start: the policy and the simulators.

LeRobot finds plugins by their distribution's name, and imports a module of that very name. Both
are registered under LeRobot's own registries by being imported; nothing heavy is.
"""

from deas_vla.envs import lerobot_envs
from deas_vla.guidance import configuration_guided

__all__ = ["configuration_guided", "lerobot_envs"]
