"""What a user relies on around the algorithm: the command line, files, resuming, errors, spaces.

The plumbing is one text in all scripts, so most tests take one on-policy and one off-policy script.
"""

import importlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback

import gymnasium as gym
import numpy as np
import odd_envs
import pytest
import torch
from conftest import (
    OFF_POLICY, ON_POLICY, ROOT, SCRIPTS, TINY, environment, flags, only_folder, state_of,
    table,
)  # fmt: skip

SINGLE = ["reinforce", "reinforce_baseline", *OFF_POLICY]  # one environment: resume to the bit
SHORT = dict(total_timesteps=180, learning_starts=140, batch_size=16, buffer_size=2_000)
SMALL = TINY | {name: SHORT | dict(eval_episodes=1) for name in OFF_POLICY}
for name in ("reinforce", "reinforce_baseline"):  # for episodes of 20 steps
    SMALL[name] = TINY[name] | dict(total_timesteps=400, batch_size=100)
SMALL["a3c"] = TINY["a3c"] | dict(num_workers=1)
FILES = "args.json", "checkpoint.pt", "episodes.csv", "summary.json", "updates.csv"


def start(script, *words, cwd, **settings) -> subprocess.Popen:
    """Starts the command line of a script in a process group of its own."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *words, *flags(settings)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    variables = environment() | {"PYTHONUNBUFFERED": ""}  # as it is on a user's machine
    return subprocess.Popen(command, cwd=cwd, env=variables, start_new_session=True, **pipes)


def main(script, *words, **settings) -> None:
    """What the command line does, without the seconds that a new process needs for its imports."""
    sys.argv = [f"{script}.py", *words, *flags(settings)]
    runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")


def screen_of_failure(capsys, monkeypatch, script, *words, **settings) -> str:
    """What is on the screen after a command line that fails."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    capsys.readouterr()
    with pytest.raises((Exception, SystemExit)) as stop:
        main(script, *words, **settings)
    text = traceback.format_exception(stop.value)  # what Python shows of it
    if stop.type is SystemExit:
        assert stop.value.code not in (None, 0)
        text = [str(stop.value.code)]
    output = capsys.readouterr()
    return "".join([output.out, output.err, *text])


def train(script, **settings):
    """A small run on Move-v0 from Python; its folder."""
    module = importlib.import_module(script)
    return module.train(module.Args(**dict(env_id="odd_envs:Move-v0") | SMALL[script] | settings))


def without_clock(folder) -> dict:
    """The rows of both CSV files but for the column that depends on the machine's speed."""
    return {
        name: [
            {key: x for key, x in row.items() if key != "seconds"} for row in table(folder / name)
        ]
        for name in ("episodes.csv", "updates.csv")
    }


def contents(folder, *names) -> dict:
    return {name: (folder / name).read_bytes() for name in names}


def assert_same_state(first, second):
    """Two checkpoints hold the same numbers."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list | tuple):
        assert len(first) == len(second)
        for x, y in zip(first, second):
            assert_same_state(x, y)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


# ── Command line and files ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_file_runs_alone(script, tmp_path):
    """A copy in an empty folder trains, writes its files, and its policy loads and evaluates."""
    shutil.copy(ROOT / f"{script}.py", tmp_path)
    env_id = "CartPole-v1" if script in ("a2c", "a3c", "trpo", "ppo") else "Pendulum-v1"
    settings = dict(env_id=env_id, seed=3) | TINY[script]
    command = [sys.executable, f"{script}.py", *flags(settings)]
    variables = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path)
    assert folder.name.startswith(f"{env_id}__{script}__3__") and folder.name in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)

    stored = json.loads((folder / "args.json").read_text())
    assert stored["script"] == script and settings.items() <= stored["args"].items()
    assert stored["versions"] == {x.__name__: x.__version__ for x in (torch, gym, np)}
    for name in ("episodes.csv", "updates.csv"):
        rows = table(folder / name)
        assert list(rows[0])[:2] == ["step", "seconds"] and len(rows) >= 2
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert list(table(folder / "episodes.csv")[0])[2:] == ["episode_return", "length"]

    # A stranger's checkpoint runs no code, and its policy evaluates as it did after training.
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    summary = json.loads((folder / "summary.json").read_text())
    assert checkpoint["step"] == summary["step"] >= settings["total_timesteps"]
    module = importlib.import_module(script)
    env = module.make_env(env_id)
    actor = module.Actor(env.observation_space, env.action_space)
    actor.load_state_dict(checkpoint["state"]["actor"])
    returns = module.evaluate(actor, env, 1, 10**6 * 3 + 999_999)
    assert returns == summary["evaluation_returns"] == [summary["evaluation_return"]]
    action = actor.mode(torch.as_tensor(env.observation_space.sample())).numpy()[()]
    assert env.action_space.contains(action)
    if script in ON_POLICY:  # the statistics are a part of the policy
        assert actor.obs_norm.count > 0 and (actor.obs_norm.std != 1).all()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    """What a user needs first comes first; every flag is explained."""
    with pytest.raises(SystemExit) as stop:
        main(script, "--help")
    printed = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert stop.value.code == 0
    shown = re.findall(r"(?m)^[│ ]*(--[a-z][a-z-]+)", printed)
    assert shown[:3] == ["--env-id", "--total-timesteps", "--seed"]
    assert shown.index("--gamma") < shown.index("--num-threads") < shown.index("--resume")
    assert "γ, discount factor" in printed


def test_import_runs_nothing(tmp_path):
    for script in SCRIPTS:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="imported")
    assert not list(tmp_path.iterdir())


def test_module_in_the_current_folder(tmp_path, monkeypatch):
    """An environment of one's own is found without PYTHONPATH."""
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x])
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\nfrom odd_envs import Reach\ngymnasium.register('Mine-v0', Reach)\n"
    )
    main("ppo", env_id="my_envs:Mine-v0", **SMALL["ppo"])
    assert (only_folder(tmp_path) / "summary.json").exists()


def test_video_and_weights_and_biases(tmp_path, monkeypatch):
    """--track, offline, and --capture-video in one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["--track", "--capture-video"]
    settings = dict(env_id="CartPole-v1") | SMALL["ppo"] | dict(eval_episodes=2)
    process = start("ppo", *words, cwd=tmp_path, **settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    folder = only_folder(tmp_path)
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = log.read_bytes()
    for name in (b"episodes/episode_return", b"updates/approx_kl", b"evaluation_return"):
        assert name in logged
    videos = list(folder.glob("videos/*.mp4"))
    assert len(videos) == 2 and all(video.stat().st_size > 1_000 for video in videos)


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_video_that_cannot_be_recorded(script, tmp_path):
    """The run fails before it trains, not after, if the environment cannot draw itself."""
    with pytest.raises(NotImplementedError):
        train(script, capture_video=True)
    assert not list(tmp_path.iterdir())


# ── Seeds and resuming ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "a3c"])
def test_seeds(script):
    """The same seed gives the same files but for the clock, another seed gives others."""
    first, second, third = (train(script, seed=seed) for seed in (1, 1, 2))
    assert without_clock(first) == without_clock(second)
    assert_same_state(state_of(first), state_of(second))
    for name, rows in without_clock(third).items():
        assert rows != without_clock(first)[name]


@pytest.mark.parametrize("script", SINGLE)
def test_half_and_half_is_the_whole(script):
    """With one environment, N/2 steps and N/2 more after --resume are the same as N steps."""
    total = 2 * SMALL[script]["total_timesteps"]
    half, whole = train(script), train(script, total_timesteps=total)
    train(script, total_timesteps=total, resume=half)
    assert without_clock(half) == without_clock(whole)
    assert_same_state(state_of(half), state_of(whole))
    first, second = (json.loads((x / "summary.json").read_text()) for x in (half, whole))
    del first["seconds"], second["seconds"]
    assert first == second


@pytest.mark.parametrize("script", ["a2c", "trpo", "ppo"])
def test_resume_with_several_environments(script):
    """The rows go on where they ended, and the episodes are new ones."""
    folder = train(script)
    before = without_clock(folder)
    train(script, total_timesteps=1_024, resume=folder)
    for name, rows in without_clock(folder).items():
        assert rows[: len(before[name])] == before[name] and len(rows) > len(before[name])
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    returns = [row["episode_return"] for row in table(folder / "episodes.csv")]
    assert len(set(returns)) == len(returns)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] >= 1_024


@pytest.mark.parametrize("script", ["ppo", "sac", "reinforce"])
def test_kill(script, tmp_path):
    """kill -9 at random moments; what was saved goes on, without half rows and duplicates."""
    settings = SMALL[script] | dict(total_timesteps=10**7, env_id="odd_envs:Slow-v0")
    chance, words = random.Random(), []
    for _ in range(2 if script == "ppo" else 1):
        process = start(script, *words, cwd=tmp_path, save_every=0.0, **settings)
        deadline, wanted = time.time() + 120, len(words) // 2 + 1  # the second goes further
        while not any(
            len(table(path)) > 6 * wanted for path in tmp_path.glob("runs/*/updates.csv")
        ):
            assert process.poll() is None, process.stdout.read()
            assert time.time() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        folder = only_folder(tmp_path)
        words = ["--resume", str(folder)]
    (folder / "notes.csv").write_text("the user's own\n")
    # What a kill between two saves, in the middle of a row and of a checkpoint leaves behind:
    for name in ("episodes.csv", "updates.csv"):
        rows = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*rows, rows[-1], rows[-1][:5]]))
    (folder / "checkpoint.tmp").write_bytes(b"half")

    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert saved > 0
    total = settings["total_timesteps"] = saved + 240
    train(script, **settings, resume=folder)
    for name in ("episodes.csv", "updates.csv"):
        lines = (folder / name).read_text().splitlines()
        assert len({line.count(",") for line in lines}) == 1
    assert (folder / "notes.csv").read_text() == "the user's own\n"
    updates = [row["step"] for row in table(folder / "updates.csv")]
    assert updates == sorted(set(updates)) and saved in updates
    seconds = [row["seconds"] for row in table(folder / "updates.csv")]
    assert seconds == sorted(seconds)
    episodes = table(folder / "episodes.csv")
    assert all(row["length"] == 20 for row in episodes)
    if script == "ppo":
        assert updates == list(range(64, total + 64, 64))
        return
    assert [row["step"] for row in episodes] == list(range(20, len(episodes) * 20 + 1, 20))
    assert total <= len(episodes) * 20 < total + 100
    unbroken = train(script, **settings | dict(env_id="odd_envs:Move-v0"))
    assert without_clock(folder) == without_clock(unbroken)
    assert_same_state(state_of(folder), state_of(unbroken))


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_kill_during_the_evaluation(script, monkeypatch):
    """Training is not lost, and no summary of an earlier state is left as if it were the last."""
    module, evaluate = importlib.import_module(script), importlib.import_module(script).evaluate
    folder, total = train(script), 2 * SMALL[script]["total_timesteps"]

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(script, total_timesteps=total, resume=folder)
    rows = without_clock(folder)
    monkeypatch.setattr(module, "evaluate", evaluate)
    train(script, total_timesteps=total, resume=folder)
    assert json.loads((folder / "summary.json").read_text())["step"] >= total
    assert without_clock(folder) == rows


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_evaluation_alone(script, tmp_path, monkeypatch, capsys):
    """--resume with --total-timesteps 0 shows the policy, and leaves the run as it was."""
    env_id = "CartPole-v1" if script == "ppo" else "Pendulum-v1"
    folder = train(script, env_id=env_id, total_timesteps=300)
    for name in ("episodes.csv", "notes.csv"):  # rows since the checkpoint; the user's own file
        with open(folder / name, "a") as file:
            file.write("300,1,2,3\n")
    names = "args.json", "summary.json", "episodes.csv", "updates.csv", "notes.csv"
    before, state = contents(folder, *names), state_of(folder)
    capsys.readouterr()
    words = ["--resume", str(folder), "--total-timesteps", "0", "--eval-episodes", "1"]
    main(script, *words, "--capture-video", "--track")
    assert not (folder / "wandb").exists()
    assert contents(folder, *names) == before
    assert_same_state(state, state_of(folder))
    returns = json.loads(before["summary.json"])["evaluation_returns"]
    assert f"evaluation_return {returns[0]:,.1f}" in capsys.readouterr().out
    assert len(list(folder.glob("videos/*.mp4"))) == 1


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_flags_given_with_resume_win(script, monkeypatch):
    """A resumed run has its own arguments, but for those that are given."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = train(script, gamma=0.9, seed=5)
    before = json.loads((folder / "args.json").read_text())["args"]
    main(script, "--resume", str(folder), "--total-timesteps", "600", "--eval-episodes", "3")
    after = json.loads((folder / "args.json").read_text())["args"]
    assert after == before | dict(total_timesteps=600, eval_episodes=3)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] >= 600 and len(summary["evaluation_returns"]) == 3


def test_alpha_given_with_resume_wins():
    """Without autotune, SAC's α is the flag, not the α that an earlier part of the run has found."""
    folder = train("sac")
    train("sac", autotune=False, alpha=0.7, total_timesteps=300, resume=folder)
    assert table(folder / "updates.csv")[-1]["alpha"] == pytest.approx(0.7)


RATES = {
    "reinforce_baseline": ["learning_rate", "critic_learning_rate"],
    "trpo": ["critic_learning_rate"],
} | dict.fromkeys(OFF_POLICY, ["policy_lr", "q_lr"])


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "a3c"])
def test_learning_rate_given_with_resume_wins(script):
    """With a learning rate of 0 the networks move no more, whatever the checkpoint says."""
    folder, rates = train(script), RATES.get(script, ["learning_rate"])
    first = state_of(folder)
    total = SMALL[script]["total_timesteps"] + 200
    train(script, **dict.fromkeys(rates, 0.0), total_timesteps=total, resume=folder)
    second = state_of(folder)
    names = [name for name in ("actor", "critic", "critics") if name in first]
    for network in names if script != "trpo" else ["critic"]:
        for name, value in first[network].items():
            # A critic's last layer moves against its statistics, so that its values stay.
            if "norm" not in name and not (network == "critic" and name.startswith("net.4")):
                assert torch.equal(value, second[network][name]), f"{network}.{name}"


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────

ERRORS = [
    ("ppo", dict(env_id="HalfCheeta-v4"), "HalfCheetah"),
    ("sac", dict(env_id="no_such_module:Env-v0"), "no_such_module"),
    ("ppo", dict(env_id="odd_envs:WholeNumbers-v0"), "cannot choose actions from Box"),
    ("ppo", dict(env_id="odd_envs:Lists-v0"), "cannot flatten the observations: Sequence"),
    ("ppo", dict(num_minibatches=65), "num_minibatches must be at most num_steps * num_envs"),
    ("sac", dict(learning_starts=180), "learning_starts must be less than total_timesteps"),
    ("ppo", dict(env_id="odd_envs:NaNReward-v0"), "not finite at step"),
    ("sac", dict(env_id="odd_envs:NaNReward-v0"), "not finite at step"),
    ("reinforce", dict(env_id="odd_envs:NaNReward-v0"), "not finite at step"),
    *((name, dict(env_id="odd_envs:Unbounded-v0"), "finite bounds") for name in OFF_POLICY),
    *((name, dict(env_id="CartPole-v1"), "finite bounds") for name in OFF_POLICY),
]


@pytest.mark.parametrize("script, bad, message", ERRORS)
def test_user_errors(script, bad, message, capsys, monkeypatch):
    """One line, the last on the screen, without a traceback."""
    settings = dict(env_id="Pendulum-v1") | SMALL[script] | bad
    screen = screen_of_failure(capsys, monkeypatch, script, **settings)
    assert message in screen.splitlines()[-1] and "Traceback" not in screen


@pytest.mark.parametrize("script", ["ppo", "a3c"])
def test_error_while_the_bar_is_open(script, tmp_path):
    """The bar ends before the error, and is not drawn again below it; all processes end at once."""
    settings = SMALL[script] | dict(env_id="odd_envs:NaNReward-v0", total_timesteps=10**7)
    process = start(script, cwd=tmp_path, **settings)
    try:
        output, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    *_, bar, hint, last = output.strip().split("\n")
    assert "it/s" in bar and hint.endswith(f"--resume runs/{only_folder(tmp_path).name}")
    assert last.startswith("FloatingPointError: not finite at step") and process.returncode == 1
    assert "Traceback" not in output and "it/s" not in hint + last


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_bugs_keep_their_traceback(script, capsys, monkeypatch):
    settings = SMALL[script] | dict(env_id="odd_envs:Bug-v0")
    screen = screen_of_failure(capsys, monkeypatch, script, **settings)
    assert "Traceback" in screen and "None + 1.0" in screen and "TypeError" in screen


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_bad_resume(script, tmp_path, capsys, monkeypatch):
    """A folder that is none, or holds another script's run."""
    screen = screen_of_failure(capsys, monkeypatch, script, "--resume", "nowhere")
    assert "nowhere" in screen.splitlines()[-1] and "Traceback" not in screen
    assert not (tmp_path / "nowhere").exists()
    folder = str(train("reinforce"))
    screen = screen_of_failure(capsys, monkeypatch, script, "--resume", folder)
    assert "is a run of reinforce.py" in screen.splitlines()[-1] and "Traceback" not in screen


@pytest.mark.parametrize("script", ["ppo", "sac", "a3c"])
def test_interrupt(script, tmp_path):
    """Ctrl-C, which reaches all processes of the group: how to go on, and no traceback."""
    settings = SMALL[script] | dict(total_timesteps=10**7, env_id="odd_envs:Slow-v0")
    process = start(script, cwd=tmp_path, **settings)
    deadline = time.time() + 120
    while not list(tmp_path.glob("runs/*/updates.csv")):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert f"--resume runs/{only_folder(tmp_path).name}" in output and process.returncode == 1
    assert "Traceback" not in output, output


@pytest.mark.parametrize("size", [2_000, 200_000])
def test_full_disk(size, tmp_path):
    """A file that cannot grow, a CSV file or a checkpoint: one line, and the last one is kept."""
    folder, name = train("sac"), "checkpoint.pt"
    before = contents(folder, name)
    if size > 2_000:  # room for the first rows, and then for no checkpoint
        (folder / "checkpoint.tmp").unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "sac.py"), "--resume", str(folder), "--save-every", "0"]
    limit = (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = subprocess.run(
        [*command, "--total-timesteps", "4000"],
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("OSError")
    assert contents(folder, name) == before
    train("sac", total_timesteps=300, resume=folder)  # once there is room again


# ── Spaces, rewards, infos ────────────────────────────────────────────────────────────────────────

ALL = odd_envs.DISCRETE | odd_envs.BOUNDED | odd_envs.UNBOUNDED


@pytest.mark.parametrize("space", ALL)
def test_action_spaces_on_policy(space):
    """Every action sent is in the space, has its type, and is scored by one number a sample. The
    class Actor is one text in the on-policy scripts."""
    module, n = importlib.import_module("ppo"), 50
    env = module.make_env(f"odd_envs:{space}-v0")
    actor = module.Actor(env.observation_space, env.action_space)
    obs = torch.as_tensor(np.stack([env.observation_space.sample() for _ in range(n)]))
    obs = obs.clamp(-1, 1)
    torch.nn.init.orthogonal_(actor.net[-1].weight, 2)  # far from the middle as well
    dist = actor(obs)
    samples = dist.sample()
    assert dist.log_prob(samples).shape == dist.entropy().shape == (n,)
    assert dist.log_prob(samples).isfinite().all() and dist.entropy().isfinite().all()
    for action in (
        *actor.to_env(samples),
        *actor.mode(obs).numpy(),
        actor.mode(obs[0]).numpy()[()],
    ):
        assert env.action_space.contains(action)
        assert space in odd_envs.DISCRETE or action.dtype == env.action_space.dtype
    if space in odd_envs.DISCRETE:  # each action of the space comes up, and the modes are likely
        few = {str(action) for action in actor.to_env(actor(obs[0]).sample((3_000,)))}
        assert len(few) > 2
        assert (dist.log_prob(dist.mode) >= dist.log_prob(samples)).all()


@pytest.mark.parametrize("space", ALL)
@pytest.mark.parametrize("script", ["reinforce", "ppo"])
def test_training_in_action_spaces(script, space):
    """The environment asserts that each action that it gets is in its space."""
    rows = table(train(script, env_id=f"odd_envs:{space}-v0") / "episodes.csv")
    assert len({row["episode_return"] for row in rows}) > 3


@pytest.mark.parametrize("space", odd_envs.BOUNDED)
@pytest.mark.parametrize("script", OFF_POLICY)
def test_action_spaces_off_policy(script, space):
    train(script, env_id=f"odd_envs:{space}-v0")
    module = importlib.import_module(script)
    env = module.make_env(f"odd_envs:{space}-v0")
    actor = module.Actor(env.observation_space, env.action_space)
    low, high = env.action_space.low, env.action_space.high
    for end, bound in ((-1.0, low), (1.0, high)):  # the bounds themselves can be reached
        action = actor.to_env(torch.full((low.size,), end))
        assert env.action_space.contains(action) and action.dtype == low.dtype
        np.testing.assert_allclose(action, bound, rtol=1e-6)


@pytest.mark.parametrize("script", ["ppo", "sac", "reinforce"])
def test_observations_of_any_kind(script):
    """A dictionary of numbers and bytes becomes one vector of float32."""
    module = importlib.import_module(script)
    obs, _ = module.make_env("odd_envs:Nested-v0").reset()
    assert obs.shape == (10,) and obs.dtype == np.float32
    train(script, env_id="odd_envs:Nested-v0")
    if script != "sac":
        train(script, env_id="FrozenLake-v1")


@pytest.mark.parametrize("script", ["ppo", "sac", "reinforce"])
def test_rewards_as_arrays_and_infos_of_ones_own(script):
    """They change nothing: neither the training, nor the returns and lengths that are logged."""
    plain, *others = (
        without_clock(train(script, env_id=f"odd_envs:{name}-v0"))
        for name in ("Plain", "ArrayReward", "OwnKeys")
    )
    assert plain == others[0] == others[1]
    assert all(row["length"] == 20 for row in plain["episodes.csv"])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_mujoco(script):
    folder = train(script, env_id="Hopper-v4")
    assert len(table(folder / "updates.csv")) >= 3


# ── --compile ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", ["ppo", "ddpg", "td3", "sac"])
def test_compile(script, monkeypatch):
    """The update is one graph, and gives the numbers of the eager one.

    Only PPO's is translated to C++ here, which takes long; of the others only the graph is made.
    """
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    if script != "ppo":
        compile = torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda update, options: compile(update, backend="aot_eager")
        )
    elif not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    total = 192 if script == "ppo" else 180  # 3 and 40 updates
    settings = dict(total_timesteps=total, eval_episodes=0)
    eager, graph = (train(script, compile=x, **settings) for x in (False, True))
    for first, second in zip(table(eager / "updates.csv"), table(graph / "updates.csv")):
        del first["seconds"], second["seconds"]
        assert second == pytest.approx(first, rel=1e-3, abs=1e-4)
    first, second = state_of(eager)["actor"], state_of(graph)["actor"]
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-2, atol=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == (2 if script == "td3" else 1)
    assert not counters["graph_break"]
