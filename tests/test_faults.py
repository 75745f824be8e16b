"""What goes wrong says so, and loses nothing that was saved."""

import importlib
import importlib.metadata
import json
import math
import os
import shutil
import signal
import time

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from conftest import (
    EPISODIC, OFF_POLICY, SCRIPTS, TINY, command_line, only_folder, probe, run, start, table,
    without_clock,
)  # fmt: skip

ON_POLICY = [script for script in SCRIPTS if script not in OFF_POLICY]
PARALLEL = [script for script in ("a2c", "trpo", "ppo") if script in SCRIPTS]  # N environments
SINGLE = [script for script in SCRIPTS if script in EPISODIC + OFF_POLICY]  # one environment
MAIN_RATE = {
    "trpo": ("critic", "critic_learning_rate"),  # its policy has no step size
    "ddpg": ("critic", "learning_rate"),
    "td3": ("critic1", "learning_rate"),
    "sac": ("critic1", "q_lr"),
}
BATCH = 64  # steps between two rows of updates.csv in the tiny runs of the N-environment scripts


def wait_for(condition, process, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.05)


def rows_on_disk(path) -> int:
    files = list(path.glob("runs/*/updates.csv"))
    return len(files[0].read_text().splitlines()) - 1 if files else 0


def assert_complete(folder, total, batch=BATCH):
    """The logs have each update once, each episode once, in order, without a gap."""
    steps = [row["step"] for row in table(folder / "updates.csv")]
    assert steps == list(range(batch, total + 1, batch))
    episodes = table(folder / "episodes.csv")
    assert [row["step"] for row in episodes] == sorted(row["step"] for row in episodes)
    seconds = [row["seconds"] for row in table(folder / "updates.csv")]
    assert seconds == sorted(seconds)


# ── Stops ─────────────────────────────────────────────────────────────────────────────────────────


def slow_run(script, tmp_path, total):
    """A run of the probe Slow that can be hit in its middle."""
    settings = TINY[script] | dict(total_timesteps=total, checkpoint_every=256)
    return start(script, env_id=probe(script, "Slow"), cwd=tmp_path, **settings)


@pytest.mark.parametrize("script", PARALLEL)
def test_kill_and_resume(script, tmp_path):
    """kill -9 between two checkpoints; --resume cuts the logs back to the last one and goes on."""
    process = slow_run(script, tmp_path, total=100_000)
    wait_for(lambda: rows_on_disk(tmp_path) >= 14, process)
    process.kill()
    process.wait()
    folder = only_folder(tmp_path)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert saved >= 256 and saved % 256 == 0
    with open(folder / "episodes.csv", "a") as file:
        file.write("1")  # the first digit of a row, as a kill in mid-write could leave it
    total = saved + 512
    done = run(script, "--resume", str(folder), "--total-timesteps", str(total), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_complete(folder, total)
    stored = json.loads((folder / "args.json").read_text())["args"]
    assert stored["num_envs"] == 2 and stored["total_timesteps"] == total  # the command line wins
    # 20-step episodes of 1 each, 2 environments: none is lost but those under way at the kill.
    assert len(table(folder / "episodes.csv")) == 2 * (saved // 40) + 2 * (512 // 40)


@pytest.mark.parametrize("script", SINGLE)
def test_kill_and_resume_is_the_same_run(script, tmp_path):
    """With one environment even its random numbers go on: to the bit the run that was never stopped."""
    module = importlib.import_module(script)
    settings = TINY[script] | dict(env_id="Pendulum-v1", checkpoint_every=400)
    process = start(script, cwd=tmp_path, **settings | {"total_timesteps": 10**6})
    wait_for(lambda: rows_on_disk(tmp_path) >= 4, process)
    process.kill()
    process.wait()
    folder = only_folder(tmp_path)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    settings["total_timesteps"] = saved + 600
    module.train(module.Args(**settings, resume=folder))
    unbroken = module.train(module.Args(**settings))
    for name in ("updates.csv", "episodes.csv"):
        assert without_clock(folder / name) == without_clock(unbroken / name)
    first, second = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, unbroken))
    for part in first["state"].keys() - {name for name in first["state"] if "optimizer" in name}:
        for name, value in first["state"][part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["state"][part][name]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", SCRIPTS)
def test_interrupt_saves(script, number, tmp_path):
    process = slow_run(script, tmp_path, total=100_000)
    wait_for(lambda: rows_on_disk(tmp_path) >= 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    folder = only_folder(tmp_path)
    assert f"--resume runs/{folder.name}" in output and "Traceback" not in output
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == table(folder / "updates.csv")[-1]["step"]
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize("script", [script for script in ("td3", "sac") if script in SCRIPTS])
def test_interrupt_between_two_updates_of_the_policy(script, monkeypatch):
    """The run goes on until a row tells of all updates: then it is the same as one not stopped."""
    module, runs, steps = importlib.import_module(script), [], []
    init, outcome = module.Run.__init__, probes.OneStep.outcome

    def spy_init(run, *args, **parts):
        runs.append(run)
        init(run, *args, **parts)

    def spy(env, action):
        steps.append(action)
        if len(steps) == 71:  # the 21st update
            runs[0].interrupt()
        return outcome(env, action)

    monkeypatch.setattr(module.Run, "__init__", spy_init)
    monkeypatch.setattr(probes.OneStep, "outcome", spy)
    settings = TINY[script] | dict(env_id=probe(script, "OneStep"), policy_frequency=2)
    settings |= dict(learning_starts=50, total_timesteps=100, eval_episodes=0)
    with pytest.raises(SystemExit):
        module.train(module.Args(**settings))
    assert runs[0].step == 72
    folder = module.train(module.Args(**settings, resume=runs[0].folder))
    unbroken = module.train(module.Args(**settings))
    assert without_clock(folder / "updates.csv") == without_clock(unbroken / "updates.csv")


@pytest.mark.parametrize("script", SCRIPTS)
def test_resume_of_a_finished_run_only_evaluates(script):
    folder = command_line(script, env_id="Pendulum-v1", **TINY[script])
    files = ("checkpoint.pt", "updates.csv", "episodes.csv", "args.json")
    before = {name: (folder / name).read_bytes() for name in files}
    command_line(script, "--resume", str(folder), "--eval-episodes", "3")
    assert before == {name: (folder / name).read_bytes() for name in files}
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["evaluation_returns"]) == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpoint_restores_everything(script):
    """What a resumed run starts from is what the other one ended with: weights, moments, generators."""
    module = importlib.import_module(script)
    settings = dict(env_id="Pendulum-v1", **TINY[script])
    folder = module.train(module.Args(**settings))
    generator = torch.get_rng_state()
    first = torch.load(folder / "checkpoint.pt", weights_only=True)
    shutil.copy(folder / "checkpoint.pt", "first.pt")
    torch.manual_seed(99)
    module.train(module.Args(**settings | {"eval_episodes": 0}, resume=folder))
    assert torch.equal(torch.get_rng_state(), first["random"][2])
    assert torch.equal(generator, first["random"][2])  # evaluation draws no random numbers
    total = TINY[script]["total_timesteps"] + 200
    module.train(module.Args(**settings | {"total_timesteps": total}, resume=folder))
    second = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"]
    optimizers = [name for name in first["state"] if name.endswith("optimizer")]
    assert optimizers
    for name in optimizers:
        steps = [s["state"][name]["state"][0]["step"] for s in (first, second)]
        assert steps[1] > steps[0] > 0  # Adam's moments went on, and did not begin anew


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_win_over_the_checkpoint(script):
    """A step size given beside --resume is the one that is used: with 0 nothing moves any more."""
    module = importlib.import_module(script)
    settings = dict(env_id="Pendulum-v1", **TINY[script]) | {"eval_episodes": 0}
    folder = module.train(module.Args(**settings))
    first = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    settings["total_timesteps"] += 400
    network, rate = MAIN_RATE.get(script, ("actor", "learning_rate"))
    module.train(module.Args(**settings | {rate: 0.0}, resume=folder))
    second = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    # A critic's last layer moves against its statistics, so that its values stay.
    moves = ("norm", "net.4") if script == "trpo" else ("norm",)
    for name in [name for name in first[network] if not any(x in name for x in moves)]:
        assert torch.equal(first[network][name], second[network][name]), name


# ── Bad input ─────────────────────────────────────────────────────────────────────────────────────

BAD = [
    (dict(env_id="probes:ManyActions-v0"), "MultiDiscrete"),
    (dict(env_id="probes:Unbounded-v0"), "finite bounds"),
    (dict(env_id="probes:WholeNumbers-v0"), "floats"),
    (dict(env_id="probes:Lists-v0"), "flat vector"),
    (dict(total_timesteps=0), "total_timesteps is 0"),
    (dict(seed=-1), "seed is -1"),
    (dict(gamma=1.5), "gamma is 1.5"),
    (dict(learning_rate=float("nan")), "learning_rate is nan"),
    (dict(learning_rate=-1.0), "learning_rate is -1.0"),
    (dict(num_threads=0), "num_threads is 0"),
    (dict(checkpoint_every=0), "checkpoint_every is 0"),
    (dict(eval_episodes=-1), "eval_episodes is -1"),
    (dict(seed=2**32), "seed is 4294967296"),
    (dict(num_threads=1.5), "num_threads is 1.5; it must be a whole number"),
    (dict(cuda=True), "no GPU"),
]
BAD_PARALLEL = [
    (
        dict(total_timesteps=63),
        "total_timesteps is 63; the first update needs 64: raise it, or lower num_envs or num_steps",
    ),
    (dict(num_envs=0), "num_envs is 0"),
    (dict(num_steps=0), "num_steps is 0"),
]
BAD_OF = {
    "reinforce": [
        (dict(batch_size=0), "batch_size is 0"),
        (
            dict(total_timesteps=149),
            "total_timesteps is 149; the first update needs 150: raise it, or lower batch_size",
        ),
    ],
    "a2c": BAD_PARALLEL,
    "a3c": [
        (
            dict(total_timesteps=31),
            "total_timesteps is 31; the first update needs 32: raise it, or lower num_steps",
        ),
        (dict(num_workers=0), "num_workers is 0"),
    ],
    "trpo": [*BAD_PARALLEL, (dict(gae_lambda=-0.1), "gae_lambda is -0.1")],
    "ppo": [
        *BAD_PARALLEL,
        (dict(num_minibatches=65), "num_minibatches is 65; it can be at most 64"),
        (dict(gae_lambda=-0.1), "gae_lambda is -0.1"),
    ],
}
BAD_OF["reinforce_baseline"] = BAD_OF["reinforce"]
for script in OFF_POLICY:
    BAD_OF[script] = [
        (dict(env_id="CartPole-v1"), "a3c.py, trpo.py and ppo.py serve Discrete ones too"),
        (
            dict(total_timesteps=350),
            "total_timesteps is 350; the first update needs 35[12]: raise it, or lower learning_starts",
        ),
        (dict(learning_starts=-1), "learning_starts is -1"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(buffer_size=0), "buffer_size is 0"),
        (dict(tau=1.5), "tau is 1.5"),
        (dict(policy_lr=-1.0), "policy_lr is -1.0"),
        (
            dict(matmul_precision="low"),
            "matmul_precision is low; it must be highest, high or medium",
        ),
    ]
for script in ("td3", "sac"):  # an update of the policy
    bad = dict(total_timesteps=399, policy_frequency=50)
    message = "the first update needs 400: raise it, or lower learning_starts or policy_frequency"
    BAD_OF[script].append((bad, message))


@pytest.mark.parametrize(
    "script, bad, message",
    [(script, *case) for script in SCRIPTS for case in BAD + BAD_OF.get(script, [])],
)
def test_bad_input(script, bad, message):
    if "learning_rate" in bad and script in ("trpo", "sac"):  # their own name for it
        bad = {MAIN_RATE[script][1]: bad["learning_rate"]}
        message = message.replace("learning_rate", MAIN_RATE[script][1])
    if "cuda" in bad and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    module = importlib.import_module(script)
    env_id = "Pendulum-v1" if script in OFF_POLICY else "CartPole-v1"
    settings = {"env_id": env_id} | TINY[script] | bad
    with pytest.raises(ValueError, match=message):
        module.train(module.Args(**settings))
    assert not os.path.exists("runs")  # it fails before it leaves anything behind


@pytest.mark.parametrize("script", [x for x in SCRIPTS if x not in ("a2c", "ppo")])
def test_torchrun_is_refused(script, monkeypatch):
    """Each process would do the whole run, with the same seed; a2c.py and ppo.py share the work."""
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    module = importlib.import_module(script)
    with pytest.raises(ValueError, match="torchrun would repeat the whole run"):
        module.train(module.Args(env_id="Pendulum-v1", **TINY[script]))


@pytest.mark.parametrize("script", [script for script in EPISODIC if script in SCRIPTS])
def test_no_episode_ends(script):
    """Without one whole episode there is nothing to learn from, and the run must not pretend."""
    module = importlib.import_module(script)
    settings = TINY[script] | dict(env_id="HalfCheetah-v4", total_timesteps=999)
    with pytest.raises(ValueError, match="no episode of HalfCheetah-v4 ended within 999 steps"):
        module.train(module.Args(**settings))


@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_resume(script, tmp_path):
    module = importlib.import_module(script)
    settings = {"env_id": "Pendulum-v1"} | TINY[script]
    with pytest.raises(ValueError, match="no args.json"):
        module.train(module.Args(**settings, resume=tmp_path / "nowhere"))
    folder = module.train(module.Args(**settings))
    other = "MountainCarContinuous-v0"
    with pytest.raises(ValueError, match=f"is a run on Pendulum-v1, env_id is {other}"):
        module.train(module.Args(**settings | {"env_id": other}, resume=folder))
    path = folder / "args.json"
    path.write_text(path.read_text().replace(f'"script": "{script}"', '"script": "other"'))
    with pytest.raises(ValueError, match=f"a run of other.py, not of {script}.py"):
        module.train(module.Args(**settings, resume=folder))
    with pytest.raises(ValueError, match="a run of other.py"):
        command_line(script, "--resume", str(folder))


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_environment(script, tmp_path):
    with pytest.raises(gym.error.NameNotFound, match="Did you mean.*HalfCheetah.*my_module:MyEnv"):
        command_line(script, env_id="HalfCheeta-v4")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_package_that_is_not_installed(script, monkeypatch):
    """Classic control needs no MuJoCo, even if a part of it was left behind."""
    module, version = importlib.import_module(script), importlib.metadata.version

    def spy(package):
        if package == "mujoco":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(module, "version", spy)
    folder = module.Run(module.Args(env_id="Pendulum-v1")).folder
    versions = json.loads((folder / "args.json").read_text())["versions"]
    assert versions.keys() == {"python", "torch", "gymnasium", "numpy"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line(script, "--num-env", "4")
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "--num-env" in printed.out + printed.err


# ── Numbers that are not finite ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "env_id, name",
    [("NanReward", "reward"), ("NanObservation", "observation"), ("Huge", "observation")],
)
@pytest.mark.parametrize("script", PARALLEL + SINGLE)
def test_not_finite(script, env_id, name, tmp_path):
    """The run stops with an error, and the checkpoint before it stays, with finite numbers."""
    module = importlib.import_module(script)
    settings = TINY[script] | dict(checkpoint_every=32)
    step, saved = 50, 0  # the episode's 50th step, before the first update
    if script in PARALLEL:
        step, saved = 100, 96
        settings["num_steps"] = 16
    message = f"not finite at step {step}: {name}.*holds step {saved}"
    with pytest.raises(FloatingPointError, match=message):
        module.train(module.Args(env_id=probe(script, env_id), **settings))
    folder = only_folder(tmp_path)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == saved
    for name in ("actor", "critic"):
        for value in checkpoint["state"].get(name, {}).values():
            assert value.isfinite().all()
    for path in folder.glob("updates.csv"):
        assert all(np.isfinite(list(row.values())).all() for row in table(path))


@pytest.mark.parametrize("script", [script for script in OFF_POLICY if script in SCRIPTS])
def test_first_observation_is_not_finite(script):
    """It is named before a random action is stored with it."""
    module = importlib.import_module(script)
    with pytest.raises(FloatingPointError, match="not finite at step 20: observation"):
        module.train(module.Args(env_id=probe(script, "NanReset"), **TINY[script]))


@pytest.mark.parametrize("script", [script for script in ("td3", "sac") if script in SCRIPTS])
def test_critics_that_diverge_behind_the_last_row(script, tmp_path, monkeypatch):
    """Updates of the critics that none of the policy follows have no row; they are checked too."""
    module, calls = importlib.import_module(script), []
    target = module.td_target

    def spy(*args):
        calls.append(args)
        return target(*args) * (math.inf if len(calls) > 60 else 1.0)

    monkeypatch.setattr(module, "td_target", spy)
    settings = TINY[script] | dict(
        env_id=probe(script, "Counter"),
        policy_frequency=50,
        learning_starts=50,
        total_timesteps=140,
    )
    with pytest.raises(FloatingPointError, match="not finite at step 140: critic1.*step 100"):
        module.train(module.Args(**settings | dict(checkpoint_every=10)))
    assert len(calls) == 90
    checkpoint = torch.load(only_folder(tmp_path) / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 100
    assert all(x.isfinite().all() for x in checkpoint["state"]["critic1"].values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_diverged_parameters(script, tmp_path):
    """A learning rate beyond all reason breaks the parameters, not the checkpoint."""
    module = importlib.import_module(script)
    settings = TINY[script] | dict(env_id="Pendulum-v1", checkpoint_every=10**6)
    broken, rate = MAIN_RATE.get(script, ("actor", "learning_rate"))
    if script in OFF_POLICY:  # the next action already shows it
        broken = "action"
    with pytest.raises(FloatingPointError, match=f"{broken}.*still holds step 0"):
        module.train(module.Args(**settings | {rate: 1e39}))  # beyond float32
    checkpoint = torch.load(only_folder(tmp_path) / "checkpoint.pt", weights_only=True)
    for value in checkpoint["state"][MAIN_RATE.get(script, ("actor",))[0]].values():
        assert value.isfinite().all()


# ── Disk ──────────────────────────────────────────────────────────────────────────────────────────

needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@needs_dev_full
@pytest.mark.parametrize("script", SCRIPTS)
def test_full_disk(script):
    """/dev/full takes the place of a file on a full disk: an error, and the last checkpoint is kept."""
    module = importlib.import_module(script)
    settings = {"env_id": "CartPole-v1"} | TINY[script]
    if script in OFF_POLICY:
        settings["env_id"] = "Pendulum-v1"
    folder = module.train(module.Args(**settings))
    before = (folder / "checkpoint.pt").read_bytes()
    for name in ("checkpoint.pt.tmp", "updates.csv", "episodes.csv"):
        parts = restored_parts(module, settings["env_id"], folder)
        run_ = module.Run(module.Args(**settings, resume=folder), **parts)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/full")
        run_.step += 128
        message = "No space left on device.*still holds step \\d+.*--resume"
        with pytest.raises(OSError, match=message):
            run_.log_episode(1.0, 1)
            run_.log_update(loss=1.0)
        assert (folder / "checkpoint.pt").read_bytes() == before
        (folder / name).unlink(missing_ok=True)
    settings["total_timesteps"] += 200
    module.train(module.Args(**settings, resume=folder))  # once there is room again


def restored_parts(module, env_id, folder):
    """The parts of a checkpoint, as train makes them."""
    names = torch.load(folder / "checkpoint.pt", weights_only=True)["state"].keys()
    env, parts = module.make_env(env_id), {}
    parts["actor"] = module.Actor(env.observation_space, env.action_space)
    rest = list(parts["actor"].parameters())
    if "buffer" in names:
        spaces = env.observation_space, env.action_space
        for name in names - {"actor"}:
            if name.startswith("critic") and name != "critic_optimizer":
                parts[name] = module.Critic(*spaces)
        if "actor_target" in names:
            parts["actor_target"] = module.Actor(*spaces)
        if "temperature" in names:
            parts["temperature"] = module.Temperature(1.0)
            parts["alpha_optimizer"] = torch.optim.Adam(parts["temperature"].parameters())
        parts["actor_optimizer"] = torch.optim.Adam(rest)
        critics = [parts[name] for name in ("critic", "critic1", "critic2") if name in names]
        w = [parameter for critic in critics for parameter in critic.parameters()]
        parts["critic_optimizer"] = torch.optim.Adam(w)
        parts["buffer"] = module.ReplayBuffer(2000, 3, 1, torch.device("cpu"))
    elif "critic" in names:
        parts["critic"] = module.Critic(env.observation_space)
        w = list(parts["critic"].parameters())
        if "critic_optimizer" in names:
            parts["critic_optimizer"] = torch.optim.Adam(w)
        else:
            rest += w
    if "optimizer" in names:
        parts["optimizer"] = torch.optim.Adam(rest)
    assert parts.keys() == names
    return parts


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_folder_for_runs(script, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    module = importlib.import_module(script)
    with pytest.raises(OSError, match="cannot write to runs/Pendulum-v1__"):
        module.train(module.Args(**{"env_id": "Pendulum-v1"} | TINY[script]))
