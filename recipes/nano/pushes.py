"""Pushes, so that a policy that goes astray has seen the way back.

Careful episodes never leave the expert's path, and a policy does. To disturb the expert and imitate
its answer is DART (Laskey et al., arXiv 1703.09327).
"""

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import SimEnv
from deas_vla.envs.robocasa.manipulation import ReachExpert
from deas_vla.envs.rollout import Plan

STEPS = (4, 11)  # how long a push lasts
ARM = slice(5, 11)  # of a kitchen's action: the hand's motion and turn


class Pushed:
    """An expert whose arm is pushed now and then, and who plans anew afterwards.

    Attributes:
        pushed: Of every step so far, whether its action was a push.
        meant: Of every step so far, the action (12,) without the expert's jitter.
    """

    def __init__(self, expert: ReachExpert, probability: float) -> None:
        self.expert, self.probability = expert, probability
        self.pushed: list[bool] = []
        self.meant: list[NDArray[np.float32]] = []

    def reset(self, seed: int) -> None:
        self.expert.reset(seed)
        self.pushed, self.meant = [], []
        self._rng = np.random.default_rng((seed, 6))
        self._push: list[NDArray[np.float32]] = []
        self._last: NDArray[np.float32] | None = None

    def plan(self, env: SimEnv) -> Plan:
        if not self._push and self._last is not None and self._rng.random() < self.probability:
            self._push = [self._thrown(self._last)] * int(self._rng.integers(*STEPS))
        self.pushed.append(bool(self._push))
        if self._push:
            action = self._push.pop()
            if not self._push:
                self.expert.replan()
            self.meant.append(action)
            return Plan(action[None])
        plan = self.expert.plan(env)
        self._last = plan.actions[-1]
        self.meant.append(self.expert.meant)
        return plan

    def undisturbed(self, step: int, horizon: int) -> NDArray[np.bool_]:
        """Of the steps from ``step`` on, at most ``horizon``, those before the next push."""
        pushed = np.array(self.pushed[step : step + horizon])
        return np.cumsum(pushed) == 0

    def _thrown(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """The last action with the arm going anywhere, at half to full speed."""
        thrown = action.copy()
        way = self._rng.normal(size=6) * [1, 1, 1, 0.3, 0.3, 0.3]
        thrown[ARM] = self._rng.uniform(0.5, 1.0) * way / np.linalg.norm(way)
        return thrown
