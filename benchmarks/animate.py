"""A trained policy in motion: results/policies/<script>__<env_id> as results/<script>__<env_id>.gif.

    MUJOCO_GL=egl python benchmarks/animate.py ppo HalfCheetah-v4

The camera follows the body. That of Gymnasium 1.4, which --capture-video records, loses sight of
HalfCheetah.
"""

import importlib
import sys

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from run import RESULTS, ROOT

sys.path.append(str(ROOT))
FIRST, LAST, STRIDE = 20, 120, 2  # steps of 0.05 seconds: five seconds, before the floor ends


def main(script: str, env_id: str) -> None:
    module = importlib.import_module(script)
    spaces = module.make_env(env_id)
    actor = module.Actor(spaces.observation_space, spaces.action_space)
    path = RESULTS / "policies" / f"{script}__{env_id}" / "checkpoint.pt"
    actor.load_state_dict(torch.load(path, weights_only=True)["state"]["actor"])
    size = dict(width=400, height=240)
    env = gym.make(env_id, render_mode="rgb_array", camera_name="track", **size)
    obs, _ = env.reset(seed=1)
    pictures = []
    for step in range(LAST):
        obs, *_ = env.step(actor.mode(obs.astype(np.float32)))
        if step >= FIRST and step % STRIDE == 0:
            pictures.append(Image.fromarray(env.render()).quantize(64, dither=Image.Dither.NONE))
    path, more = RESULTS / f"{script}__{env_id}.gif", pictures[1:]
    pictures[0].save(path, save_all=True, append_images=more, duration=100, loop=0, optimize=True)
    print(f"{path.relative_to(ROOT)}: {len(pictures)} pictures, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
