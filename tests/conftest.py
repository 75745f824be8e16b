"""What all tests share: the scripts that exist, a fresh working folder, and tiny settings."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent
ORDER = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ddpg", "td3", "sac"]
SCRIPTS = [name for name in ORDER if (ROOT / f"{name}.py").exists()]

EPISODIC = [
    "reinforce",
    "reinforce_baseline",
]  # they update after whole episodes, play one environment
OFF_POLICY = ["ddpg", "td3", "sac"]
ON_POLICY = [name for name in ORDER if name not in OFF_POLICY]

# A run of a few updates: flags for the command line, and the same for Args(...).
TINY = {
    # Pendulum's episodes have 200 steps each: three updates.
    "reinforce": dict(total_timesteps=600, batch_size=150, eval_episodes=1, checkpoint_every=128),
    "reinforce_baseline": dict(
        total_timesteps=600, batch_size=150, critic_epochs=2, eval_episodes=1, checkpoint_every=128
    ),
    "a2c": dict(
        total_timesteps=512, num_envs=2, num_steps=32, eval_episodes=1, checkpoint_every=128
    ),
    "a3c": dict(
        total_timesteps=512, num_workers=2, num_steps=32, eval_episodes=1, checkpoint_every=128
    ),
    "trpo": dict(
        total_timesteps=512, num_envs=2, num_steps=32, critic_epochs=2, eval_episodes=1,
        checkpoint_every=128,
    ),
    "ppo": dict(
        total_timesteps=512, num_envs=2, num_steps=32, num_minibatches=4, update_epochs=2,
        eval_episodes=1, checkpoint_every=128,
    ),
    "ddpg": dict(
        total_timesteps=600, learning_starts=350, batch_size=16, buffer_size=2_000, eval_episodes=1,
        checkpoint_every=128,
    ),
}  # fmt: skip
TINY["td3"] = TINY["sac"] = TINY["ddpg"]


def probe(script: str, name: str) -> str:
    """The id of a probe of tests/probes.py, with the actions that the script serves."""
    return f"probes:{'Box' if script in OFF_POLICY else ''}{name}-v0"


def flags(settings: dict) -> list[str]:
    """{"num_envs": 2, "anneal_lr": True} → ["--num-envs", "2", "--anneal-lr"]"""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{flag}" if value else f"--no-{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        )
    return words


def only_folder(path):
    (folder,) = path.glob("runs/*")
    return folder


def environment() -> dict[str, str]:
    """The variables of a subprocess: it finds the environments of tests/probes.py."""
    return os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}


def run(script: str, *words: str, cwd: Path, **settings) -> subprocess.CompletedProcess:
    """Runs a script's command line to its end."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *words, *flags(settings)]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


def command_line(script: str, *words: str, **settings) -> Path:
    """What a script's command line does, without the seconds that a new process takes to import."""
    module = importlib.import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *words, *flags(settings)])
        return module.train(module.parse_args())


def start(
    script: str, *words: str, cwd: Path, start_new_session: bool = False, **settings
) -> subprocess.Popen:
    """Starts a script's command line and leaves it running."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *words, *flags(settings)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def table(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file as numbers."""
    with open(path) as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def without_clock(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file without what depends on the machine's speed."""
    return [
        {
            name: number
            for name, number in row.items()
            if name not in ("seconds", "steps_per_second")
        }
        for row in table(path)
    ]


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path, monkeypatch):
    """Every test works in an empty folder, on one thread, from the same random numbers."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
