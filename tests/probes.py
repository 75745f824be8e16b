"""Small environments in which one mistake of an implementation decides the result."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Sequence


class Probe(gym.Env):
    """One constant observation, two actions; subclasses say what they pay."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

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


class TimeLimit(Probe):
    """Action 0 pays 1 and goes on, action 1 pays 5 and terminates. A time limit that is not
    observed cuts every episode after 5 steps. With γ = 0.9, going on is worth 1/(1 − γ) = 10; whoever
    takes the limit for an end sees at most 1 + 0.9 + ... + 0.9⁴ = 4.1 in it, and prefers the 5.
    """

    def outcome(self, action):
        return (5.0, True) if action == 1 else (1.0, False)


class Counter(Probe):
    """Observes the number of steps since the environment was made, so that each is unique."""

    observation_space = Box(0, np.inf, (1,), np.float32)
    made = 0

    def __init__(self):
        Counter.made += 1
        self.count = 1000 * Counter.made

    def observation(self):
        self.count += 1
        return np.array([self.count], np.float32)


class Parity(Counter):
    """Pays 1 where the number that it observes is odd."""

    def outcome(self, action):
        return float(self.count % 2), False


class NanReward(Probe):
    """Pays 1, but NaN in the 50th step of an episode."""

    def outcome(self, action):
        return (np.nan if self.t == 50 else 1.0), False


class NanObservation(Probe):
    """Observes NaN from the 50th step of an episode on."""

    def observation(self):
        return np.full(1, np.nan if self.t >= 50 else 1.0, np.float32)


class NanReset(Probe):
    """Observes NaN at the start of its third episode."""

    starts = 0

    def observation(self):
        self.starts += self.t == 0
        return np.full(1, np.nan if self.starts == 3 and self.t == 0 else 1.0, np.float32)


class Huge(Probe):
    """Observes, from the 50th step of an episode on, what float32 cannot hold."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)

    def observation(self):
        return np.full(1, 1e39 if self.t >= 50 else 1.0)


class OneStep(Probe):
    """Pays 7 and ends."""

    def outcome(self, action):
        return 7.0, True


class Chance(Probe):
    """Observations and ends by chance: no two states are alike, one step in five terminates."""

    def observation(self):
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)

    def outcome(self, action):
        return self.t + float(action), bool(self.np_random.random() < 0.2)


class OldGenerator(Chance):
    """Random numbers as dm_control's environments have them: from NumPy's older kind of generator,
    whose seeds have 32 bits, and which keeps every second normal number for the next call."""

    def __init__(self):
        self.generator = np.random.RandomState(0)

    @property
    def np_random(self):
        return self.generator

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.generator = np.random.RandomState(seed)
        self.t = 0
        return self.observation(), {}

    def observation(self):
        return np.tanh(self.np_random.randn(1)).astype(np.float32)


class Narrow(Probe):
    """Bounds of float64 that float32 has to round; an action beyond them is an error."""

    action_space = Box(np.array([-0.1, 0.7]), np.array([0.1, 0.8]), dtype=np.float64)

    def outcome(self, action):
        assert self.action_space.contains(action), action.astype(np.float64)
        return 1.0, False


class Slow(Probe):
    """Takes a millisecond a step, so that a test can reach a run in its middle."""

    def step(self, action):
        import time

        time.sleep(0.001)
        return super().step(action)


class Lopsided(Probe):
    """A 1 × 2 box of actions with different bounds in each dimension; remembers what it was given."""

    action_space = Box(np.array([[-1.0, 2.0]], np.float32), np.array([[3.0, 2.5]], np.float32))
    taken = []

    def outcome(self, action):
        assert self.action_space.contains(action), action
        Lopsided.taken.append(action)
        return float(-abs(action).sum()), False


class Nested(Probe):
    """A Dict observation of a one-hot and a matrix; actions that are numbered from 3."""

    observation_space = Dict(number=Discrete(4), matrix=Box(-1, 1, (2, 3)))
    action_space = Discrete(2, start=3)

    def observation(self):
        return {"number": self.t % 4, "matrix": np.zeros((2, 3), np.float32)}

    def outcome(self, action):
        assert self.action_space.contains(action), action
        return float(action == 4), False


class Images(Probe):
    observation_space = Box(0, 255, (4, 5, 3), np.uint8)

    def observation(self):
        return np.zeros((4, 5, 3), np.uint8)


class Lists(Probe):
    observation_space = Sequence(Discrete(2))


class ManyActions(Probe):
    action_space = MultiDiscrete([2, 3])


class Unbounded(Probe):
    action_space = Box(-np.inf, np.inf, (1,))


class Wide(Probe):
    """Bounds that float32 cannot hold."""

    action_space = Box(-1e300, 1e300, (2,), np.float64)

    def outcome(self, action):
        assert self.action_space.contains(action), action
        return 1.0, False


class WholeNumbers(Probe):
    action_space = Box(0, 5, (1,), np.int64)


class Raises(Probe):
    """An environment with a mistake that shows in its 100th step."""

    def outcome(self, action):
        if self.t == 100:
            raise ArithmeticError("the motor is hot")
        return 1.0, False


class Reuse(Counter):
    """As Counter, but its observation is always the same array, with other content."""

    def __init__(self):
        super().__init__()
        self.array = np.zeros(1, np.float32)

    def observation(self):
        self.array[:] = super().observation()
        return self.array


class Sign(gym.ActionWrapper):
    """The two actions of a probe as a box: below 0 is action 0, above it action 1."""

    action_space = Box(-1, 1, (1,))

    def action(self, action):
        assert self.action_space.contains(action), action
        return int(action[0] > 0)


for name, limit in {
    "TimeLimit": 5, "Counter": 10, "Parity": 10, "NanReward": 200, "NanObservation": 200, "NanReset": 20, "Huge": 200, "OldGenerator": 20, "Slow": 20, "OneStep": 5, "Lopsided": 20, "Chance": 20, "Narrow": 20,
    "Nested": 20, "Images": 20, "Lists": 20, "Reuse": 10, "ManyActions": 20, "Unbounded": 20, "WholeNumbers": 20, "Wide": 20,
    "Raises": 200,
}.items():  # fmt: skip
    gym.register(f"{name}-v0", entry_point=globals()[name], max_episode_steps=limit)
    gym.register(
        f"Box{name}-v0",
        entry_point=lambda probe=globals()[name], **settings: Sign(probe(**settings)),
        max_episode_steps=limit,
    )

gym.register("BoxBoth-v0", entry_point=lambda **x: Sign(OneStep(**x)), max_episode_steps=1)
gym.register("Endless-v0", entry_point=lambda **settings: Sign(Probe(**settings)))

gym.register(
    "ShortCheetah-v0",  # MuJoCo, but few frames to render
    entry_point="gymnasium.envs.mujoco.half_cheetah_v4:HalfCheetahEnv",
    max_episode_steps=5,
)
