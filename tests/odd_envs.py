"""Small environments with unusual spaces, rewards, infos and faults; ids odd_envs:NAME-v0.

Every environment asserts that each action lies in its action space, and has the type of a Box.
"""

import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Odd(gym.Env):
    """20 steps an episode; `observe` and `outcome` are the subclass's."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    info = {}
    steps = 0  # since the environment was made

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self):
        return np.ones(1, np.float32)

    def outcome(self, action):
        return 1.0

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        assert (
            not isinstance(self.action_space, spaces.Box) or action.dtype == self.action_space.dtype
        )
        reward = self.outcome(action)
        self.t, self.steps = self.t + 1, self.steps + 1
        return self.observe(), reward, False, self.t >= 20, dict(self.info)


class Match(Odd):
    """Reward: the fraction of the action's entries that equal what the observation shows."""

    def __init__(self, action_space):
        self.action_space = action_space
        self.start = getattr(action_space, "start", 0)
        if isinstance(action_space, spaces.MultiBinary):
            self.n = np.full(action_space.shape, 2)
        else:
            self.n = getattr(action_space, "nvec", None)
            self.n = np.array(action_space.n) if self.n is None else self.n
        self.observation_space = spaces.Box(0, 1, (int(self.n.sum()),), np.float32)

    def observe(self):
        self.goal = self.np_random.integers(self.n)
        one_hots = [np.eye(n)[goal] for n, goal in zip(self.n.flat, np.asarray(self.goal).flat)]
        return np.concatenate(one_hots).astype(np.float32)

    def outcome(self, action):
        return float((action == self.goal + self.start).mean())


class Move(Odd):
    """The action moves x, and the reward is −|x| of the x before: so the next reward counts."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, render_mode=None):  # which it takes, but it has no render()
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.x = self.np_random.uniform(-2, 2)
        return super().reset(options=options)

    def observe(self):
        return np.array([self.x], np.float32)

    def outcome(self, action):
        reward = -abs(self.x)
        self.x += 0.5 * float(action[0])
        return reward


class Reach(Odd):
    """Reward −|a − x| for each entry of the action, averaged."""

    def __init__(self, action_space=Odd.action_space, reward=float, info=None):
        self.action_space, self.reward, self.info = action_space, reward, info or {}

    def observe(self):
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x

    def outcome(self, action):
        return self.reward(-abs(action - self.x).mean())


class ShortLong(Odd):
    """Action 0 ends the episode and pays 1; action 1 goes on to ten steps that pay 2 in all."""

    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)

    def observe(self):
        return np.array([self.t == 0, self.t > 0], np.float32)

    def step(self, action):
        self.t += 1
        if self.t == 1 and action == 0:
            return self.observe(), 1.0, True, False, {}
        return self.observe(), 0.2, self.t == 10, False, {}


class Nested(Odd):
    """Observes a dictionary of a number and a matrix of bytes."""

    observation_space = spaces.Dict(
        number=spaces.Discrete(4), matrix=spaces.Box(0, 255, (2, 3), np.uint8)
    )

    def observe(self):
        return {"number": self.t % 4, "matrix": np.full((2, 3), self.t, np.uint8)}


class Lists(Odd):
    observation_space = spaces.Sequence(spaces.Discrete(2))

    def observe(self):
        return (0, 1)


class NaNReward(Odd):
    """The reward is NaN from the environment's 100th step on."""

    def step(self, action):
        self.t, self.steps = self.t + 1, self.steps + 1
        reward = np.nan if self.steps >= 100 else 1.0
        return self.observe(), reward, False, self.t >= 20, {}


class Bug(Odd):
    """Raises a TypeError in its 50th step."""

    def outcome(self, action):
        return 1.0 if self.steps < 50 else None + 1.0


class Slow(Move):
    """Takes half a millisecond a step."""

    def outcome(self, action):
        time.sleep(0.0005)
        return super().outcome(action)


inf = np.inf
column = np.array([[-1], [2]], np.float32)
DISCRETE = {
    "Numbered": spaces.Discrete(3, start=5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiDiscreteNumbered": spaces.MultiDiscrete([3, 2], start=[2, -1]),
    "MultiDiscrete2D": spaces.MultiDiscrete([[2, 3, 2], [4, 2, 2]]),
    "MultiBinary": spaces.MultiBinary(4),
    "MultiBinary2D": spaces.MultiBinary([2, 3]),
}
BOUNDED = {
    "Matrix": spaces.Box(column, column + np.float32(2.5)),
    "Float64": spaces.Box(np.array([-0.1, 0.7]), np.array([0.1, 0.8]), dtype=np.float64),
}
UNBOUNDED = {
    "Unbounded": spaces.Box(-inf, inf, (2,), np.float32),
    "Huge": spaces.Box(-3e38, 3e38, (2,), np.float32),  # high − low is infinite
    "BoundedBelow": spaces.Box(0.5, inf, (1,), np.float32),
    "BoundedAbove": spaces.Box(-inf, -0.5, (1,), np.float64),
}
for name, space in DISCRETE.items():
    gym.register(f"{name}-v0", lambda space=space: Match(space))
for name, space in (BOUNDED | UNBOUNDED).items():
    gym.register(f"{name}-v0", lambda space=space: Reach(space))
gym.register("WholeNumbers-v0", lambda: Reach(spaces.Box(0, 5, (1,), np.int64)))
gym.register("Plain-v0", Reach)
gym.register("ArrayReward-v0", lambda: Reach(reward=lambda reward: np.array([reward])))
gym.register("OwnKeys-v0", lambda: Reach(info={"episode": 7, "final_info": 1, "final_obs": None}))
for kind in Move, ShortLong, Nested, Lists, NaNReward, Bug, Slow:
    gym.register(f"{kind.__name__}-v0", kind)
