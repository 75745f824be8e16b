"""Small environments in which one mistake of an implementation decides the result.

Each class becomes probes:Name-v0; one with two discrete actions also becomes probes:BoxName-v0, for
the scripts that need a Box.
"""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class Probe(gym.Env):
    """One constant observation, two actions, a reward of 1; `limit` is its time limit."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)
    limit = 20

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation(), {}

    def observation(self):
        return np.ones(1, np.float32)

    def step(self, action):
        self.t += 1
        reward, terminated = self.outcome(action)
        return self.observation(), reward, terminated, False, {}

    def outcome(self, action):
        return 1.0, False


class Counter(Probe):
    """Observes 1001, 1002, ..., the second environment 2001, ...: no observation comes twice, and
    the successor of k is k + 1. A reset counts on."""

    observation_space = Box(0, np.inf, (1,), np.float32)
    limit = 10
    made = 0

    def __init__(self):
        Counter.made += 1
        self.count = 1000 * Counter.made

    def observation(self):
        self.count += 1
        return np.array([self.count], np.float32)


class Reuse(Counter):
    """As Counter, but its observation is always the same array, with other content."""

    def __init__(self):
        super().__init__()
        self.array = np.zeros(1, np.float32)

    def observation(self):
        self.array[:] = super().observation()
        return self.array


class Parity(Counter):
    """Pays 1 where the number that it observes is odd, and a whole number."""

    def outcome(self, action):
        return int(self.count % 2), False


class OneStep(Probe):
    """Pays 7 and ends."""

    def outcome(self, action):
        return 7.0, True


class Both(Probe):
    """Terminates in its tenth step, where the time limit cuts it too."""

    limit = 10

    def outcome(self, action):
        return 1.0, self.t == 10


class Chance(Probe):
    """Observations and ends by chance: no two states are alike, one step in five terminates."""

    def observation(self):
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)

    def outcome(self, action):
        return self.t + float(action), bool(self.np_random.random() < 0.2)


class Fork(Probe):
    """Two states, one-hot. In the first, action 1 pays 2 and ends; action 0 costs 1 and leads to the
    second, where action 0 pays 3 and action 1 pays 0.5, and both end: the lengths are not equal."""

    observation_space = Box(0, 1, (2,), np.float32)

    def observation(self):
        return np.eye(2, dtype=np.float32)[self.t % 2]

    def outcome(self, action):
        if self.t == 1:
            return (2.0, True) if action == 1 else (-1.0, False)
        return (0.5 if action == 1 else 3.0), True


class Lopsided(Probe):
    """A 1 × 2 box of actions with different bounds in each dimension; remembers what it was given."""

    action_space = Box(np.array([[-1.0, 2.0]], np.float32), np.array([[3.0, 2.5]], np.float32))
    taken = []

    def outcome(self, action):
        assert self.action_space.contains(action), action
        Lopsided.taken.append(action)
        return float(-abs(action).sum()), False


class Sign(gym.ActionWrapper):
    """The two actions of a probe as a box: below 0 is action 0, above it action 1."""

    action_space = Box(-1, 1, (1,))

    def action(self, action):
        assert self.action_space.contains(action), action
        return int(action[0] > 0)


def register(probe: type) -> None:
    name, limit = probe.__name__, probe.limit
    gym.register(f"{name}-v0", entry_point=probe, max_episode_steps=limit)
    if probe.action_space == Discrete(2):
        gym.register(
            f"Box{name}-v0", entry_point=lambda **x: Sign(probe(**x)), max_episode_steps=limit
        )


for probe in [x for x in globals().values() if isinstance(x, type) and issubclass(x, Probe)]:
    register(probe)
