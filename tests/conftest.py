"""What all tests share: the scripts, tiny settings, and a fresh working folder for each test."""

import csv
import os
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EPISODIC = ["reinforce", "reinforce_baseline"]  # update after whole episodes of one environment
ON_POLICY = [*EPISODIC, "a2c", "a3c", "trpo", "ppo"]
OFF_POLICY = ["ddpg", "td3", "sac"]
SCRIPTS = ON_POLICY + OFF_POLICY
LANGUAGE = ["rlhf", "grpo"]  # policies that write; no environments of Gymnasium

# Arguments of a run of a few updates.
TINY = {
    "reinforce": dict(total_timesteps=600, batch_size=150),
    "reinforce_baseline": dict(total_timesteps=600, batch_size=150, critic_epochs=2),
    "a2c": dict(total_timesteps=512, num_envs=2, num_steps=32),
    "a3c": dict(total_timesteps=512, num_workers=2, num_steps=32),
    "trpo": dict(total_timesteps=512, num_envs=2, num_steps=32, critic_epochs=2),
    "ppo": dict(
        total_timesteps=512, num_envs=2, num_steps=32, num_minibatches=4, update_epochs=2
    ),
    "ddpg": dict(total_timesteps=600, learning_starts=350, batch_size=16, buffer_size=2_000),
}  # fmt: skip
TINY["td3"] = TINY["sac"] = TINY["ddpg"]
TINY = {script: settings | dict(eval_episodes=1) for script, settings in TINY.items()}


def probe(script: str, name: str) -> str:
    """The id of an environment of tests/probes.py, with actions that the script can choose."""
    return f"probes:{'Box' if script in OFF_POLICY else ''}{name}-v0"


def flags(settings: dict) -> list[str]:
    """{"num_envs": 2, "anneal_lr": False} → ["--num-envs", "2", "--no-anneal-lr"]"""
    words = []
    for name, value in settings.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{name}" if value else f"--no-{name}"]
        else:
            words += [f"--{name}", str(value)]
    return words


def only_folder(path: Path) -> Path:
    """The folder of the only run below path."""
    (folder,) = path.glob("runs/*")
    return folder


def environment() -> dict[str, str]:
    """The variables of a subprocess: it finds the environments of tests/probes.py."""
    variables = {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return os.environ | variables


def table(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file as numbers."""
    with open(path) as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def state_of(folder: Path) -> dict:
    """What the run's checkpoint holds of networks, optimizers and replay buffer."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path, monkeypatch):
    """Every test works in an empty folder, on one thread, from the same random numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
