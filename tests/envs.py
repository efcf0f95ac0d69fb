"""Toy environments with known answers."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Frame(NamedTuple):
    """What one step of a ScriptedGame gives."""

    screen: tuple[int, int] = (0, 0)
    reward: Any = 0.0
    lives: int = 0
    terminated: bool = False
    truncated: bool = False


class ScriptedGame(gym.Env):
    """Plays written games, one list of Frames each: the first is the reset's, one more a step.

    The actions are noted, not obeyed. A screen is one row of two gray pixels, (1, 2, 3) uint8.
    After the last game the first comes again. `calls` notes every reset's keywords and every
    step's action; stepping past a game's end fails.
    """

    def __init__(
        self,
        *games: list[Frame],
        meanings: tuple[str, ...] = ("NOOP", "FIRE", "UP"),
        info: dict[str, Any] | None = None,
    ) -> None:
        self.games = games
        self.meanings = meanings
        self.info = {} if info is None else info
        self.observation_space = spaces.Box(0, 255, (1, 2, 3), np.uint8)
        self.action_space = spaces.Discrete(len(meanings))
        self.ale = self
        self.calls: list[Any] = []
        self.games_begun = 0
        self.time = 0

    @property
    def frame(self) -> Frame:
        return self.games[(self.games_begun - 1) % len(self.games)][self.time]

    def lives(self) -> int:
        return self.frame.lives

    def get_action_meanings(self) -> list[str]:
        return list(self.meanings)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=kwargs.get("seed"))
        self.calls.append(kwargs)
        self.games_begun += 1
        self.time = 0
        return self._screen(), dict(self.info)

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        assert not (self.frame.terminated or self.frame.truncated), "stepped past the game's end"
        self.calls.append(action)
        self.time += 1
        _, reward, _, terminated, truncated = self.frame
        return self._screen(), reward, terminated, truncated, dict(self.info)

    def _screen(self) -> np.ndarray:
        return np.repeat(np.array([self.frame.screen], np.uint8)[..., None], 3, axis=-1)


class Countdown(gym.Env):
    """Observes the steps that are left and pays 1 a step: episodes of the written lengths, in turn.

    Attributes:
        lengths: of the episodes, again from the first after the last.
        truncate: end them by `truncated` rather than `terminated`.
        faults: step number (over all episodes, from 0) to a function of (ob, reward) that returns
            what to give instead, or raises.
    """

    def __init__(
        self,
        *lengths: int,
        truncate: bool = False,
        action_space: gym.Space | None = None,
        faults: dict[int, Any] | None = None,
    ) -> None:
        self.lengths = lengths
        self.truncate = truncate
        self.faults = {} if faults is None else faults
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.episodes = 0
        self.steps = 0
        self.left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = self.lengths[self.episodes % len(self.lengths)]
        self.episodes += 1
        return np.array([float(self.left)]), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.left -= 1
        ob, reward = np.array([float(self.left)]), 1.0
        if self.steps in self.faults:
            ob, reward = self.faults[self.steps](ob, reward)
        self.steps += 1
        over = self.left == 0
        return ob, reward, over and not self.truncate, over and self.truncate, {}
