"""What torchrun starts in test_processes.py: python ranks.py <script> <flags of the script>.

Samples are a function of the distribution alone, so that any number of processes plays the same
episodes. What each process has played first, and what it ends with, is written to rank<r>.pt, with
the names of the threads that are left.
RANK_<r>=kill, or raise, ends rank r on the way; pid<r> says which process it is.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

import torch

name = sys.argv.pop(1)
script = importlib.import_module(name)
rank = os.environ.get("RANK", "0")
Path(f"pid{rank}").write_text(str(os.getpid()))
kept, play, start_alike = {}, script.play, script.start_alike


def sample(self) -> torch.Tensor:
    """N(0, 1) by its looks: the mean, which depends on the state, makes the noise."""
    return self.mu + self.std * 2 * torch.sin(1 + 50 * self.mu)


def keep(run, **state):
    kept.update(state)
    return start_alike(run, **state)


def watched_play(envs, obs, actor, T, run):
    if run.step >= 256 and (fate := os.environ.get(f"RANK_{rank}")):
        if fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("this rank was told to fail")
    obs, *rollout = play(envs, obs, actor, T, run)
    kept.setdefault("rollout", rollout)
    return obs, *rollout


if "SAME_SAMPLES" in os.environ:
    script.DiagonalGaussian.sample = sample
script.play, script.start_alike = watched_play, keep
folder = script.train(script.parse_args())
rollout = kept.pop("rollout")
content = {key: part.state_dict() for key, part in kept.items()}
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # Linux
content |= {"folder": str(folder), "rollout": rollout, "threads": threads}
torch.save(content, f"rank{rank}.pt")
