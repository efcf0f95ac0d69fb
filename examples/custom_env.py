"""An environment of your own: nothing of this project is needed to write one.

    python run_mujoco.py --env examples.custom_env:Catch-v0 --num-timesteps 50000

The part before the colon is imported, which registers the id.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Catch(gym.Env):
    """A ball falls, a bat moves left or right below it: 1 for a catch, -1 for a miss.

    The observation is a Dict, which `run_mujoco.py` flattens to a vector for its policy.
    """

    SIZE = 7

    def __init__(self) -> None:
        """Make the spaces."""
        self.observation_space = spaces.Dict(
            ball=spaces.Box(0.0, 1.0, (2,), np.float32),  # column and height
            bat=spaces.Discrete(self.SIZE),  # becomes SIZE zeros and ones
        )
        self.action_space = spaces.Discrete(3)  # left, stay, right

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Drop a new ball; `self.np_random` is Gymnasium's generator, seeded by the run's seed."""
        super().reset(seed=seed)
        self.column, self.bat = (int(x) for x in self.np_random.integers(self.SIZE, size=2))
        self.height = self.SIZE - 1
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move the bat, then the ball."""
        self.bat = int(np.clip(self.bat + int(action) - 1, 0, self.SIZE - 1))
        self.height -= 1
        is_down = self.height == 0
        reward = 0.0 if not is_down else 1.0 if self.bat == self.column else -1.0
        return self._observation(), reward, is_down, False, {}

    def _observation(self) -> dict[str, Any]:
        ball = np.array([self.column, self.height], np.float32) / (self.SIZE - 1)
        return {"ball": ball, "bat": self.bat}


gym.register("Catch-v0", entry_point=Catch)
