"""Toy environments with known answers."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from mpi4py import MPI


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


# ---- By id, for command lines: tests.envs:toy/raises-v0 -----------------------------------------


def _raise(ob: Any, reward: float) -> Any:
    raise RuntimeError("the robot fell off the table")


def _exit(ob: Any, reward: float) -> Any:
    sys.exit(0)


def _leave(ob: Any, reward: float) -> Any:
    os._exit(0)


def _kill(ob: Any, reward: float) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(ob: Any, reward: float) -> Any:
    time.sleep(1000)


FAULTS = {
    "raises": _raise,
    "exits": _exit,
    "leaves": _leave,
    "dies": _kill,
    "hangs": _hang,
    "nan-reward": lambda ob, reward: (ob, np.nan),
    "nan-observation": lambda ob, reward: (ob * np.nan, reward),
    "wrong-shape": lambda ob, reward: (np.zeros(2), reward),
    "huge-reward": lambda ob, reward: (ob, 1e38),  # finite, unlike the loss that it leads to
}


def make_faulty(fault: str) -> gym.Env:
    """Return a Countdown that goes wrong in its 95th step on the last rank.

    The file `fault` in the working directory then tells the time.
    """

    def go_wrong(ob: Any, reward: float) -> Any:
        Path("fault").write_text(str(time.time()))
        return FAULTS[fault](ob, reward)

    is_last = MPI.COMM_WORLD.Get_rank() == MPI.COMM_WORLD.Get_size() - 1
    return Countdown(10, faults={94: go_wrong} if is_last else None)


class Sampled(Countdown):
    """Countdown whose observations are samples, of any spaces."""

    def __init__(self, **given: gym.Space) -> None:
        super().__init__(10)
        for name, space in given.items():
            setattr(self, name, space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        return self.observation_space.sample(), *super().step(action)[1:]


class Leaving(Countdown):
    """Countdown whose `close` fails; the second of a process leaves a child and a thread behind."""

    made = 0

    def __init__(self) -> None:
        super().__init__(10)
        Leaving.made += 1
        if Leaving.made == 2:
            subprocess.run("sleep 300 &", shell=True)  # whose parent ends at once
            subprocess.Popen(["sleep", "301"]).returncode = 0  # nobody waits for it
            threading.Thread(target=time.sleep, args=(302,)).start()

    def close(self) -> None:
        raise RuntimeError("not connected to the simulator")


class Drawing(Countdown):
    """Observes a number from each generator that an environment may draw from.

    Its `reset` forgets the seed.
    """

    hints = spaces.Box(-1.0, 1.0, (2,), np.float64)

    def __init__(self, action_space: gym.Space | None = None) -> None:
        super().__init__(3, action_space=action_space)
        self.observation_space = spaces.Box(-np.inf, np.inf, (13,), np.float64)
        self.starts = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.parts = spaces.Dict(a=spaces.Tuple([spaces.Box(-1.0, 1.0, (2,), np.float64)]))
        self.mass = np.random.rand()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset()
        return self._draw(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        ob = self._draw()
        return ob, float(ob.sum()), *super().step(action)[2:]

    def _draw(self) -> np.ndarray:
        globals_ = [np.random.rand(), random.random(), torch.rand(()).item(), self.mass]
        own = [self.np_random.random(), self.action_space.sample(), self.observation_space.sample()]
        parts = self.parts.sample()["a"][0]
        return np.hstack([globals_, *own[:2], own[2][:1], self.starts.sample(), self.hints.sample(),
                          parts])  # fmt: skip


class OldAPI(gym.Env):
    """What gym was before Gymnasium, in one of its parts."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, part: str) -> None:
        self.part = part
        if part == "spaces":
            self.action_space = type("Box", (), {"__module__": "gym.spaces.box"})()
        if part == "seed":

            def reset() -> np.ndarray:
                return np.zeros(2, np.float32)

            self.reset = reset
        if part == "dict":
            self.observation_space = spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2))
            self.reset = lambda **kwargs: {"a": 0, "b": 1}
        if part == "vector":
            self.num_envs = 4

    def reset(self, **kwargs: Any) -> Any:
        ob = np.zeros(2, np.float32)
        return ob if self.part == "reset" else (ob, {})

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, True, {}


def make_buggy() -> gym.Env:
    raise KeyError("gravity")


for _fault in FAULTS:
    gym.register(f"toy/{_fault}-v0", entry_point=make_faulty, kwargs={"fault": _fault})
gym.register("toy/leaving-v0", entry_point=Leaving)
gym.register("toy/buggy-v0", entry_point=make_buggy)
gym.register("toy/endless-v0", entry_point=lambda: Countdown(10**9))
gym.register("toy/drawing-v0", entry_point=Drawing)
gym.register("toy/vectors-v0", entry_point=lambda: gym.make_vec("CartPole-v1", num_envs=2))
for _name in ("spaces", "seed", "reset", "dict", "step", "vector"):
    gym.register(f"toy/old-{_name}-v0", entry_point=OldAPI, kwargs={"part": _name})
gym.register("toy/old-limit-v0", entry_point=OldAPI, kwargs={"part": ""}, max_episode_steps=9)
for _name, _spaces in {
    "sequence": {"observation_space": spaces.Sequence(spaces.Discrete(3))},
    "dict": {
        "observation_space": spaces.Dict(
            a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(-1.0, 1.0, (2, 1), np.float64)])
        )
    },
    "dict-action": {"action_space": spaces.Dict(a=spaces.Discrete(3))},
    "box2d-action": {"action_space": spaces.Box(-1.0, 1.0, (2, 2))},
}.items():
    gym.register(f"toy/{_name}-v0", entry_point=Sampled, kwargs=_spaces)
