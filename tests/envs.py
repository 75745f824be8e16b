"""Small environments: ids envs:Name-v0, and with two discrete actions also envs:BoxName-v0.

In the first half one mistake of an implementation decides the result. Those of the second half have
unusual spaces, rewards, ends, infos or random numbers, or break.
"""

import random
import time

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence

inf = np.inf


class Env(gym.Env):
    """Observes 1, pays 1 and is cut after `limit` steps, if a subclass does not change it."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space, action_space = Box(-1, 1, (1,), np.float32), Discrete(2)
    limit = 20
    steps = 0  # since the environment was made

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        space = self.action_space
        assert space.contains(action), f"{action!r} is not in {space}"
        if isinstance(space, Box):
            assert action.dtype == space.dtype
        elif isinstance(space, Discrete):
            hash(action)  # environments look it up in a dict
        self.t, self.steps = self.t + 1, self.steps + 1
        reward, terminated = self.outcome(action)
        return self.observe(), reward, terminated, self.t >= self.limit, {}

    def observe(self):
        return np.ones(1, np.float32)

    def outcome(self, action):
        """The reward, and whether the episode terminates."""
        return 1.0, False


# ── One mistake decides ───────────────────────────────────────────────────────────────────────────


class Counter(Env):
    """Observes 1001, 1002, ..., the second environment 2001, ...: no observation comes twice, and
    the successor of k is k + 1. A reset counts on. It is always the same array."""

    observation_space = Box(0, inf, (1,), np.float32)
    limit = 10
    made = 0

    def __init__(self):
        Counter.made += 1
        self.count = 1000 * Counter.made
        self.array = np.zeros(1, np.float32)

    def observe(self):
        self.count += 1
        self.array[:] = self.count
        return self.array


class Parity(Counter):
    """Pays 1 where the number that it observes is odd, and a whole number."""

    def outcome(self, action):
        return int(self.count % 2), False


class Lopsided(Env):
    """A 1 × 2 box of actions with different bounds in each dimension; remembers what it was given."""

    action_space = Box(np.array([[-1.0, 2.0]], np.float32), np.array([[3.0, 2.5]], np.float32))
    taken = []

    def outcome(self, action):
        Lopsided.taken.append(action)
        return float(-abs(action).sum()), False


class Move(Env):
    """The action moves x, and the reward is −|x| of the x before: so the next reward counts."""

    observation_space = Box(-inf, inf, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None, seconds=0.0):
        self.render_mode = render_mode  # which it takes, but it has no render()
        self.seconds = seconds  # that a step takes

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.x = self.np_random.uniform(-2, 2)
        return super().reset(options=options)

    def observe(self):
        return np.array([self.x], np.float32)

    def outcome(self, action):
        time.sleep(self.seconds)
        reward = -abs(self.x)
        self.x += 0.5 * float(action[0])
        return reward, False


class Match(Env):
    """Reward: the fraction of the action's entries that equal what the observation shows."""

    def __init__(self, action_space):
        self.action_space = action_space
        self.start = getattr(action_space, "start", 0)
        if isinstance(action_space, MultiBinary):
            self.n = np.full(action_space.shape, 2)
        else:
            self.n = np.array(getattr(action_space, "nvec", getattr(action_space, "n", 0)))
        self.observation_space = Box(0, 1, (int(self.n.sum()),), np.float32)

    def observe(self):
        self.goal = self.np_random.integers(self.n)
        one_hots = [np.eye(n)[goal] for n, goal in zip(self.n.flat, np.asarray(self.goal).flat)]
        return np.concatenate(one_hots).astype(np.float32)

    def outcome(self, action):
        return float((action == self.goal + self.start).mean()), False


# ── Unusual, or broken ────────────────────────────────────────────────────────────────────────────


class Reach(Env):
    """Reward −|a − x| for each entry of the action, averaged. One step in ten terminates.

    `reward` and `end` make other types of the reward and of the two ends. With `own_info`, one dict
    with keys of the environment's own serves all steps.
    """

    def __init__(self, action_space=None, reward=float, end=bool, own_info=False):
        self.action_space = action_space or Move.action_space
        self.reward, self.end, self.info = reward, end, {} if own_info else None

    def observe(self):
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x

    def outcome(self, action):
        reward = self.reward(-abs(action - self.x).mean())
        return reward, self.np_random.random() < 0.1

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.info is not None:
            info = self.info
            info |= {"time": self.t, "episode": 7, "statistics": 0, "final_info": 1}
        return obs, reward, self.end(terminated), self.end(truncated), info


class Choose(Env):
    """Pays ± `scale` for the action that the sign of the observation asks for, or the other."""

    observation_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, scale=1.0):
        self.scale = scale

    def observe(self):
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x

    def outcome(self, action):
        return self.scale * float((2 * action - 1) * np.sign(self.x[0])), False


class Drawn(Env):
    """Observes random numbers of a generator of another kind, or of four sources."""

    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, kind):
        self.kind = kind

    def reset(self, *, seed=None, options=None):
        made = super().reset(seed=seed)
        if seed is not None and self.kind == "MT19937":
            self.np_random = np.random.Generator(np.random.MT19937(seed))
        if seed is not None and self.kind == "RandomState":
            self.np_random = np.random.RandomState(seed)
        return made

    def observe(self):
        x = self.np_random.uniform(-1, 1, 1)
        if self.kind == "Everywhere":
            x = x + np.random.uniform() + random.random() + self.action_space.sample()
        return x.astype(np.float32)

    def outcome(self, action):
        return -abs(float(action[0])), False


class Broken(Env):
    """From its 100th step on, the observation is not finite: in a step, or in a reset only."""

    observation_space = Box(-inf, inf, (2,), np.float32)

    def __init__(self, value, in_reset=False):
        self.value, self.in_reset = value, in_reset

    def observe(self):
        broken = self.steps >= 100 and (self.t == 0 or not self.in_reset)
        return np.array([0.5, self.value if broken else self.np_random.normal()], np.float32)


class OneCopy(Env):
    """A port, a robot, an emulator: there can be one at a time, or `most`."""

    open = 0
    most = 1

    def __init__(self):
        assert OneCopy.open < OneCopy.most, "there is one already"
        OneCopy.open += 1

    def close(self):
        OneCopy.open -= 1


class OwnSpace(gym.Space):  # as MiniGrid's MissionSpace
    def __init__(self):
        super().__init__(dtype=str)

    def contains(self, x):
        return True


class Sign(gym.ActionWrapper):
    """Two actions as a box: below 0 is action 0, above it action 1."""

    action_space = Box(-1, 1, (1,))

    def action(self, action):
        assert self.action_space.contains(action), action
        return np.int64(action[0] > 0)


# ── Ids ───────────────────────────────────────────────────────────────────────────────────────────

largest = np.finfo(np.float32).max
DISCRETE = {
    "Numbered": Discrete(3, start=5),
    "MultiDiscrete": MultiDiscrete([3, 2]),
    "MultiDiscreteNumbered": MultiDiscrete([3, 2], start=[2, -1]),
    "MultiDiscrete2D": MultiDiscrete([[2, 3, 2], [4, 2, 2]]),
    "MultiBinary": MultiBinary(4),
    "MultiBinary2D": MultiBinary([2, 3]),
}
BOUNDED = {
    "Matrix": Box(np.float32([[-1], [2]]), np.float32([[1.5], [4.5]])),
    "Float64": Box(np.array([-0.1, 0.7]), np.array([0.1, 0.8]), dtype=np.float64),
    "Float16": Box(-1, 1, (1,), np.float16),
}
UNBOUNDED = {
    "Unbounded": Box(-inf, inf, (2,), np.float32),
    "Huge": Box(-largest, largest, (2,), np.float32),  # high − low is infinite
    "BoundedBelow": Box(0.5, inf, (1,), np.float32),
    "BoundedAbove": Box(-inf, -0.5, (1,), np.float64),
}
ENDS = {  # all that an `if` takes for True or False
    "Int": int,
    "Int8": np.int8,
    "Float": float,
    "Array": lambda end: np.array([end]),
    "ArrayOfInts": lambda end: np.array([int(end)]),
    "None": lambda end: end or None,
}
SIMPLE = {  # attributes and methods of a class of its own
    "Endless": {"limit": 10**9},
    "OneStep": {"outcome": lambda env, action: (7.0, True)},
    "Both": {"outcome": lambda env, action: (1.0, env.t == 10), "limit": 10},  # ended and cut
    "Nested": {
        "observation_space": Dict(number=Discrete(4), matrix=Box(0, 255, (2, 3), np.uint8)),
        "observe": lambda env: {"number": env.t % 4, "matrix": np.full((2, 3), env.t, np.uint8)},
    },
    "Image": {  # a replay buffer of 1,000,000 transitions does not fit into memory
        "observation_space": Box(0, 255, (96, 96, 3), np.uint8),
        "observe": lambda env: np.full((96, 96, 3), env.t, np.uint8),
    },
    "Lists": {"observation_space": Sequence(Discrete(2)), "observe": lambda env: (0, 1)},
    "Mission": {
        "observation_space": Dict(text=OwnSpace()),
        "observe": lambda env: {"text": "go to the red ball"},
    },
    "NaNReward": {"outcome": lambda env, action: (np.nan if env.steps >= 100 else 1.0, False)},
    "Raises": {"outcome": lambda env, action: (1.0 if env.steps < 50 else None + 1.0, False)},
    "BadClose": {"close": lambda env: env.is_already_gone},
}
KINDS = {name: (type(name, (Env,), own), {}) for name, own in SIMPLE.items()}
for kind in (Counter, Parity, Lopsided, Move, Reach, Choose, OneCopy):
    KINDS[kind.__name__] = kind, {}
KINDS |= {name: (Match, {"action_space": x}) for name, x in DISCRETE.items()}
KINDS |= {name: (Reach, {"action_space": x}) for name, x in (BOUNDED | UNBOUNDED).items()}
KINDS |= {f"Ends{name}": (Reach, {"end": end}) for name, end in ENDS.items()}
KINDS |= {f"Drawn{x}": (Drawn, {"kind": x}) for x in ("MT19937", "RandomState", "Everywhere")}
KINDS |= {
    "Slow": (Move, {"seconds": 0.0005}),
    "WholeNumbers": (Reach, {"action_space": Box(0, 5, (1,), np.int64)}),
    "ArrayReward": (Reach, {"reward": lambda reward: np.array([reward])}),
    "TwoRewards": (Reach, {"reward": lambda reward: np.array([reward, 1.0])}),
    "NoReward": (Reach, {"reward": lambda reward: None}),
    "OwnInfo": (Reach, {"own_info": True}),
    "ChooseSmall": (Choose, {"scale": 2.0**-20}),
    "NaN": (Broken, {"value": np.nan}),
    "Finite": (Broken, {"value": 0.5}),
    "Infinite": (Broken, {"value": inf}),
    "NaNInReset": (Broken, {"value": np.nan, "in_reset": True}),
}
for name, (kind, settings) in KINDS.items():
    gym.register(f"{name}-v0", kind, kwargs=settings)
    if kind.action_space == Discrete(2):
        gym.register(f"Box{name}-v0", lambda kind=kind, **x: Sign(kind(**x)), kwargs=settings)
