"""benchmarks/: results are written once, completely, and survive interruptions; the statistics."""

import csv
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SCRIPTS

sys.path.insert(0, str(ROOT / "benchmarks"))
import report
import run as runner
import same_code

FLAGS = "--total-timesteps 512 --num-envs 2 --num-steps 32 --num-minibatches 4 --update-epochs 1"


def test_interquartile_mean_by_hand():
    assert report.interquartile_mean([8, 1, 2, 100, 3, 4, -50, 5]) == (2 + 3 + 4 + 5) / 4
    assert report.interquartile_mean([1, 2, 6]) == 3  # nothing to leave out


def test_stratified_interval():
    """Drawn within each environment: where its seeds agree, there is nothing to be uncertain of."""
    assert report.stratified_interval([[1.0, 1.0], [3.0, 3.0]], 200) == (2, 2)
    low, high = report.stratified_interval([[0.0, 2.0], [3.0, 3.0]], 1000)
    # The middle two of (a, b, 3, 3) with a, b ∈ {0, 2}: their mean is 1.5 or 2.5.
    assert (low, high) == (1.5, 2.5)


def test_interval_of_the_mean():
    """Two numbers, drawn with replacement: a quarter of the means are the lower one."""
    assert report.interval([1.0, 2.0], 2000) == (1, 2) and report.interval([5.0], 40) == (5, 5)


def test_thinned_curve():
    """(end of a hundredth, mean of the returns of the episodes that ended in it)."""
    episodes = [{"step": step, "return": value} for step, value in ((3, 1), (10, 3), (11, 7))]
    assert runner.thinned(episodes, 1000) == [(10, 2), (20, 7)]


def test_code_hash_sees_what_a_script_does():
    text = (ROOT / "ppo.py").read_text()
    same = text.replace('"""\n', 'More words.\n"""\n', 1).replace("# c₂", "# the weight c₂", 1)
    assert same != text and runner.code_hash(same) == runner.code_hash(text)
    assert runner.code_hash(text.replace("0.25", "0.5", 1)) != runner.code_hash(text)


@pytest.mark.parametrize("script", sorted({script for script, _ in report.cells()} & set(SCRIPTS)))
def test_header_has_the_figures_of_the_results(script):
    """report.py has written them; a second time it finds nothing to change."""
    text = (ROOT / f"{script}.py").read_text()
    assert report.header_line(script) in text and report.fill_header(text, script) == text


def test_pages_have_the_tables_of_the_results():
    """Also what they say of rows of other code: after a change of a script report.py is run again."""
    for page, contents in report.contents_of().items():
        text = (ROOT / page).read_text()
        for name, content in contents.items():
            assert report.fill(text, name, content) == text, f"{page}: {name}"


def test_header_line_by_hand(monkeypatch):
    """Runs of 61 and 150 seconds with the returns 1 and 3: mean 2, standard deviation √2."""
    rows = [
        {"training_return": "1.0", "seconds": "61", "steps": "1000448"},
        {"training_return": "3.0", "seconds": "150", "steps": "1000448"},
    ]
    monkeypatch.setattr(report, "cells", lambda: {("ppo", "HalfCheetah-v4"): rows})
    line = "1,000,000 steps in 1 to 2 minutes; return 2 ± 1.4 (2 seeds; more in benchmarks.md)"
    assert report.header_line("ppo") == line
    text = "\nRun\n    python ppo.py --env-id E\n{}\nReferences\n"
    assert report.fill_header(text.format(""), "ppo") == text.format(f"    {line}\n")
    assert report.fill_header(text.format("    5 steps in 9\n"), "ppo") == text.format(
        f"    {line}\n"
    )


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """The runner in an empty folder, with a job of eight updates."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "WORK", tmp_path / "runs")
    monkeypatch.setattr(runner, "commit", lambda scripts: "abc1234")
    monkeypatch.setitem(runner.FLAGS, ("ppo", "CartPole-v1"), FLAGS)

    def benchmark(*words: str) -> None:
        command = ["run.py", "--scripts", "ppo", "--env-ids", "CartPole-v1"]
        monkeypatch.setattr(sys, "argv", [*command, "--eval-episodes", "1", *words])
        runner.main()

    return benchmark


def test_finished_runs_are_not_run_again(benchmark, tmp_path, capsys):
    benchmark("--seeds", "1", "2")
    rows = runner.read(tmp_path / "results/runs.csv")
    assert sorted(row["seed"] for row in rows) == ["1", "2"]
    row = rows[0]
    assert row["steps"] == "512" and row["commit"] == "abc1234" and "torch" in row["versions"]
    assert row["command"].startswith("python ppo.py --env-id CartPole-v1 --seed")
    curve = runner.read(tmp_path / "results/curves/ppo__CartPole-v1.csv")
    assert {point["seed"] for point in curve} == {"1", "2"}
    assert "[2/2]" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    benchmark("--seeds", "1", "2", "3", "--print")
    assert capsys.readouterr().out.split("--seeds ")[1].startswith("3 ")  # only what is left
    benchmark("--seeds", "1", "2")
    assert len(runner.read(tmp_path / "results/runs.csv")) == 2


@pytest.mark.parametrize("others", [["8"], []])
def test_a_broken_run_goes_on_from_its_checkpoint(benchmark, tmp_path, monkeypatch, others):
    """As after a kill: a folder with a checkpoint, the curve already written, but no row."""
    text = (ROOT / "ppo.py").read_text()
    words = ["--env-id", "CartPole-v1", "--seed", "7", *FLAGS.split(), "--eval-episodes", "1"]
    folder = runner.folder_of("ppo__CartPole-v1__7", runner.code_hash(text), words)
    folder.mkdir(parents=True)
    words = [*FLAGS.replace("512", "256").split(), "--seed", "7", "--env-id", "CartPole-v1"]
    shutil.copy(ROOT / "ppo.py", folder)
    command = [sys.executable, "-W", "ignore", "ppo.py", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (checkpoint,) = folder.glob("runs/*/checkpoint.pt")
    (checkpoint.parent / "summary.json").unlink()
    before = (checkpoint.parent / "episodes.csv").read_text().splitlines()
    path = tmp_path / "results/curves/ppo__CartPole-v1.csv"
    points = [{"seed": seed, "step": 5, "return": 99.0} for seed in ("7", *others)]
    runner.append(path, points)
    kept, rmtree = [], shutil.rmtree

    def keep(folder):
        (episodes,) = folder.glob("runs/*/episodes.csv")
        kept.extend(episodes.read_text().splitlines())
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", keep)
    benchmark("--seeds", "7")
    (row,) = runner.read(tmp_path / "results/runs.csv")
    assert row["resumed"] == "yes"
    assert row["steps"] == "512" and kept[: len(before)] == before and len(kept) > len(before)
    curve = runner.read(path)
    assert [point["seed"] for point in curve if point["return"] == "99.0"] == others
    assert "7" in {point["seed"] for point in curve}


def test_a_job_is_run_by_one_process(benchmark, tmp_path, capsys):
    """As when a Slurm array is submitted again while the first one still runs."""
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs/ppo__CartPole-v1__3.lock"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(SystemExit, match="1 of 1 runs failed"):
            benchmark("--seeds", "3")
        assert "another process is running this" in capsys.readouterr().out
        other.kill()
    benchmark("--seeds", "3")
    assert len(runner.read(tmp_path / "results/runs.csv")) == 1


def test_a_run_without_its_runner_keeps_its_lock(tmp_path, monkeypatch):
    """A killed run.py leaves its script at work: a second one in the same folder would spoil both."""
    monkeypatch.setattr(runner, "WORK", tmp_path)
    with runner.claimed("job") as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=[lock])
    with pytest.raises(RuntimeError, match="another process"), runner.claimed("job"):
        pass
    child.communicate(b"\n")
    with runner.claimed("job"):
        pass


def test_other_flags_are_another_run(benchmark, monkeypatch):
    """Nothing that began with one step size goes on with another."""
    run, commands = subprocess.run, []

    def break_off(command, **rest):
        commands.append(command)
        assert len(rest["pass_fds"]) == 1  # the job's lock
        done = run(command, **rest)
        done.returncode = 1  # as if it had been killed after its last checkpoint
        return done

    monkeypatch.setattr(subprocess, "run", break_off)
    for flags in (FLAGS, FLAGS, FLAGS + " --learning-rate 1e-4"):
        monkeypatch.setitem(runner.FLAGS, ("ppo", "CartPole-v1"), flags)
        with pytest.raises(SystemExit):
            benchmark("--seeds", "7")
    assert ["--resume" in command for command in commands] == [False, True, False]


def test_another_evaluation_is_another_row(benchmark, tmp_path):
    benchmark("--seeds", "1")
    benchmark("--seeds", "1", "--eval-episodes", "2")
    benchmark("--seeds", "1", "--eval-episodes", "2")
    rows = runner.read(tmp_path / "results/runs.csv")
    assert [row["command"].split("--eval-episodes ")[1][0] for row in rows] == ["1", "2"]


def test_a_seed_given_twice_is_run_once(benchmark, tmp_path, capsys):
    benchmark("--seeds", "5", "5")
    assert "[1/1]" in capsys.readouterr().out
    assert len(runner.read(tmp_path / "results/runs.csv")) == 1


def test_a_run_that_diverged_is_not_tried_again(benchmark, monkeypatch, capsys):
    commands = []

    def diverge(command, **rest):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "FloatingPointError: not finite")

    monkeypatch.setattr(subprocess, "run", diverge)
    for text in ("FloatingPointError: not finite", "it diverged, see"):
        with pytest.raises(SystemExit):
            benchmark("--seeds", "1")
        assert text in capsys.readouterr().out
    assert len(commands) == 1


def test_a_line_that_is_cut_off_is_told(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("a,b\n1,2\n3")
    with pytest.raises(RuntimeError, match="last line is cut off"):
        runner.append(path, [{"a": 5, "b": 6}])
    assert path.read_text() == "a,b\n1,2\n3"


def test_any_error_leaves_the_other_jobs_running(benchmark, tmp_path, monkeypatch, capsys):
    run = subprocess.run

    def full(command, **rest):
        if command[command.index("--seed") + 1 :][:1] == ["4"]:
            raise OSError(28, "No space left on device")
        return run(command, **rest)

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(SystemExit, match="1 of 3 runs failed"):
        benchmark("--seeds", "4", "5", "6", "--workers", "1")
    assert "ppo__CartPole-v1__4: OSError(28" in capsys.readouterr().out
    assert len(runner.read(tmp_path / "results/runs.csv")) == 2


def test_a_failing_run_does_not_stop_the_others(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        benchmark("--seeds", "-1", "4")
    assert "seed is -1" in capsys.readouterr().out
    assert [row["seed"] for row in runner.read(tmp_path / "results/runs.csv")] == ["4"]


def test_all_rows_are_run_again(benchmark, tmp_path, monkeypatch):
    """--again takes each row's seed, flags and --compile, and leaves its results alone."""
    benchmark("--seeds", "1", "2")
    path = tmp_path / "results/runs.csv"
    before = path.read_text()
    commands = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda x, **rest: commands.append(x) or real(x, **rest))
    text = (ROOT / "ppo.py").read_text()  # what a benchmark left behind has no part in it
    flags = ["--env-id", "CartPole-v1", "--seed", "1", *FLAGS.split(), "--eval-episodes", "1"]
    left = (
        runner.folder_of("ppo__CartPole-v1__1", runner.code_hash(text), flags)
        / "runs/x/checkpoint.pt"
    )
    left.parent.mkdir(parents=True)
    left.write_text("")
    words = ["run.py", "--again", str(tmp_path / "again"), "--eval-episodes", "1"]
    monkeypatch.setattr(sys, "argv", words)
    runner.main()
    assert len(commands) == 2 and path.read_text() == before
    first, second = (runner.read(tmp_path / x / "runs.csv") for x in ("results", "again"))
    for row, other in zip(*(sorted(x, key=lambda row: row["seed"]) for x in (first, second))):
        same = (
            "script",
            "env_id",
            "seed",
            "flags",
            "training_return",
            "evaluation_return",
            "command",
        )
        assert [row[name] for name in same] == [other[name] for name in same]


def test_a_run_without_an_episode_is_told(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        benchmark("--seeds", "6", "--eval-episodes", "0")
    assert "no episode has ended, in training or in the evaluation" in capsys.readouterr().out


def test_results_belong_to_a_commit(tmp_path, monkeypatch):
    """A script that differs from the commit, or is not in it at all, is refused."""
    monkeypatch.setattr(runner, "ROOT", tmp_path)

    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True
        )

    (tmp_path / "ppo.py").write_text("x = 1")
    with pytest.raises(SystemExit, match="not a git repository with a commit"):
        runner.commit(["ppo"])
    git("init")
    git("add", "ppo.py")
    git("commit", "-m", "first")
    assert len(runner.commit(["ppo"])) >= 7
    (tmp_path / "ppo.py").write_text("x = 1  # as report.py writes figures into the headers")
    assert len(runner.commit(["ppo"])) >= 7
    (tmp_path / "sac.py").write_text("x = 1")
    with pytest.raises(SystemExit, match="not committed"):
        runner.commit(["ppo", "sac"])
    (tmp_path / "ppo.py").write_text("x = 2")
    with pytest.raises(SystemExit, match="not committed"):
        runner.commit(["ppo"])


def test_peers_have_our_steps_and_their_own_settings():
    assert runner.flags_of("sb3_trpo", "CartPole-v1") == "--total-timesteps 100000"
    assert runner.flags_of("sb3_sac", "Hopper-v4") == runner.flags_of("sac", "Hopper-v4") != ""
    assert runner.flags_of("sb3_ppo", "Hopper-v4") == ""


def a_row(script: str, seed: int, training: float, evaluation: float, words: str = "") -> dict:
    command = f"python {script}.py --seed {seed} --eval-episodes 100{words}"
    return {
        "script": script, "env_id": "Hopper-v4", "seed": str(seed), "flags": "", "steps": "1000448",
        "training_return": str(training), "evaluation_return": str(evaluation), "command": command,
    }  # fmt: skip


def test_cells_leave_out_what_is_not_comparable(monkeypatch):
    """Other flags, shorter evaluations, scripts that nobody knows; a row that is there twice stops."""
    rows = [a_row("ppo", 12, 1, 2), a_row("ppo", 3, 3, 4)]
    short = a_row("ppo", 4, 5, 6)
    short["command"] = short["command"].replace("100", "10")
    rows += [short, a_row("ppo", 5, 7, 8) | {"flags": "--gamma 0.9"}, a_row("mine", 5, 7, 8)]
    monkeypatch.setattr(report, "read", lambda path: rows)
    assert {key: [row["seed"] for row in x] for key, x in report.cells().items()} == {
        ("ppo", "Hopper-v4"): ["3", "12"]
    }
    rows.append(rows[0])
    with pytest.raises(AssertionError, match="a row twice"):
        report.cells()


def test_mark(monkeypatch):
    """The like quantity is compared: CleanRL's 2,383 with training, tianshou's with evaluations."""
    low_in_training = [a_row("ppo", 1, 2000, 3000), a_row("ppo", 2, 2700, 3000)]
    assert report.mark("ppo", "Hopper-v4", low_in_training) == "✗"
    monkeypatch.setitem(report.PUBLISHED, ("ppo", "Hopper-v4"), (2383, "tianshou"))
    assert report.mark("ppo", "Hopper-v4", low_in_training) == "✓"
    many = [a_row("ppo", seed, 0, evaluation) for seed, evaluation in enumerate([0, 9000] * 3)]
    assert report.mark("ppo", "Hopper-v4", many) == "✓ (within)"  # 4,500, and nobody is sure
    sure = [a_row("ppo", seed, 0, 2300) for seed in range(5)]
    assert report.mark("ppo", "Hopper-v4", sure) == "✗"
    equal = [a_row("ppo", seed, 0, 2383) for seed in range(5)]  # as on CartPole: all 500
    assert report.mark("ppo", "Hopper-v4", equal) == "✓"


def test_rows_of_several_processes_are_whole(tmp_path):
    """All machines write into one file."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, run\n"
        "run.WORK = pathlib.Path('runs')\n"
        "for i in range(100):\n"
        "    with run.locked():\n"
        "        rows = run.read(pathlib.Path('rows.csv'))\n"
        "        run.append(pathlib.Path('rows.csv'), [{'count': len(rows), 'text': 'x' * 300}])\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks")]
    processes = [subprocess.Popen(command, cwd=tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    with open(tmp_path / "rows.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["count"]) for row in rows] == list(range(300))  # nobody read half a file


# ── same_code.py ──────────────────────────────────────────────────────────────────────────────────


def test_equal_is_to_the_last_bit():
    one, more = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2e-7])
    assert same_code.equal({"a": [one, 3]}, {"a": [one.clone(), 3]})
    for other in ({"a": [more, 3]}, {"a": [one, 4]}, {"b": [one, 3]}, {"a": [one]}, [one, 3]):
        assert not same_code.equal({"a": [one, 3]}, other)


def test_a_change_of_the_algorithm_is_found(monkeypatch):
    monkeypatch.setattr(same_code, "DEFAULT_STEPS", 4096)
    text = (ROOT / "ppo.py").read_text()
    message = text.replace("Stopping after this update", "Stopping")
    constant = text.replace("gae_lambda: float = 0.97", "gae_lambda: float = 0.971")
    assert message != text != constant
    runs = [same_code.train(x, "ppo", "CartPole-v1") for x in (text, message, constant)]
    assert len(runs[0][0]) > 50 and runs[0][2]
    assert same_code.equal(runs[0], runs[1]) and not same_code.equal(runs[0], runs[2])


PEER = """
from pathlib import Path

folder = Path("runs/one")
folder.mkdir(parents=True)
(folder / "episodes.csv").write_text("step,return,length\\n200,-7.5,200\\n")
summary = '{"evaluation_return": -9.0, "evaluation_std": 2.0, "seconds": 1}'
(folder / "summary.json").write_text(summary)
"""


def test_the_peers_are_compared_by_their_episodes_and_evaluation(monkeypatch):
    """They save no parameters; how long a run took says nothing."""
    row = {"script": "sb3_ppo", "commit": "abc", "code": "then"}
    monkeypatch.setattr(same_code, "read", lambda path: [row, row])
    assert list(same_code.versions()) == [("sb3_ppo", "abc", "then")]
    slower = PEER.replace('"seconds": 1', '"seconds": 99')
    texts = PEER, slower, PEER.replace("-7.5", "-7.25"), PEER.replace("-9.0", "-8.5")
    runs = [same_code.train(text, "sb3_ppo", "Pendulum-v1") for text in texts]
    assert runs[0] == ([("200", "-7.5", "200")], {}, [-9, 2])
    assert [same_code.equal(runs[0], other) for other in runs[1:]] == [True, False, False]
    assert same_code.flags("sb3_td3", "Hopper-v4")[-1] == "25300"


def test_rows_of_other_code_are_told(monkeypatch):
    now = runner.code_hash((ROOT / "ppo.py").read_text())
    rows = [{"seed": str(i), "code": code} for i, code in enumerate((now, "same", "other", "was"))]
    known = [
        {"script": "ppo", "code": "same", "present": now, "same": "yes"},
        {"script": "ppo", "code": "other", "present": now, "same": "no"},
        {"script": "ppo", "code": "was", "present": "another", "same": "yes"},
    ]
    monkeypatch.setattr(report, "cells", lambda: {("ppo", "Hopper-v4"): rows})
    monkeypatch.setattr(same_code, "read", lambda path: known)
    assert report.of_other_code() == ["ppo Hopper-v4: seeds 2 3"]
    assert "something else: ppo Hopper-v4: seeds 2 3." in report.code()


def test_speeds_of_other_code_are_told(monkeypatch):
    now = runner.code_hash((ROOT / "ppo.py").read_text())
    row = {"part": "peers", "script": "ppo", "commit": "abc", "code": now}
    rows = [row, row | {"code": "", "commit": "SB3"}]
    monkeypatch.setattr(report, "read", lambda path: rows)
    assert "scripts as they are now" in report.speeds_of_other_code()
    rows.append(row | {"code": "old", "commit": "def"})
    assert report.speeds_of_other_code().endswith("these commits: peers def.")


def test_ablations_of_two_versions_are_not_mixed(monkeypatch, tmp_path):
    """Rows stand beside each other only if their ppo.py trains alike; plumbing may differ."""
    ablations, text = report.ablations, (ROOT / "ppo.py").read_text()
    shown = {"now": text, "plumbing": text + "import sys", "older": text + "x = 1"}
    rows = [
        {"variant": name, "seed": "1", "commit": commit}
        for name, commit in zip(ablations.VARIANTS, shown)
    ]
    codes = {commit: runner.code_hash(text) for commit, text in shown.items()}
    same = {"script": "ppo", "code": codes["plumbing"], "present": codes["now"], "same": "yes"}
    assert ablations.code_at("0" * 40) not in codes.values()  # a commit that a clone may lack
    monkeypatch.setattr(ablations, "code_at", codes.get)
    monkeypatch.setattr(ablations, "commit", lambda scripts: "now")
    monkeypatch.setattr(ablations, "read", lambda path: rows)
    monkeypatch.setattr(same_code, "read", lambda path: [same])
    monkeypatch.setattr(ablations, "ABLATIONS", tmp_path / "ablations.csv")
    played = []
    monkeypatch.setattr(ablations, "run", lambda *job: played.append(job[:2]) or {"variant": "x"})
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--seeds", "1"])
    with pytest.raises(SystemExit, match="may do something else: older. "):
        ablations.main()
    assert not played
    del rows[2]
    ablations.main()
    names = list(ablations.VARIANTS)
    assert sorted(played) == sorted((name, "1") for name in names[2:])  # two are done


def test_ablations_compare_the_same_seeds(monkeypatch):
    """Seed 1 has 10 by default and 13 without; that seed 2 has 90 must not count."""
    ablations = report.ablations
    names = ["default", "default", next(name for name in ablations.VARIANTS if name != "default")]
    rows = [
        {"variant": name, "seed": seed, "training_return": value}
        for name, seed, value in zip(names, "121", (10, 90, 13))
    ]
    monkeypatch.setattr(ablations, "read", lambda path: rows)
    assert ablations.table().splitlines()[-1].endswith("| 13 | 13 | +3 |")
