"""The text of the scripts: what is the same in several of them, labels, sizes, and that each stands
alone. `python tests/test_copies.py --fix ppo` copies the plumbing of ppo.py into the other eight."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tokenize

import pytest
from conftest import LABEL, LANGUAGE, OFF_POLICY, ON_POLICY, ROLLOUTS, ROOT, SCRIPTS, TESTS

FILES = SCRIPTS + LANGUAGE

# Lines at most, with header, comments and blank lines.
LINES = {
    "reinforce": 490,
    "reinforce_baseline": 550,
    "a2c": 575,
    "a3c": 625,
    "trpo": 655,
    "ppo": 685,
    "ddpg": 550,
    "td3": 565,
    "sac": 600,
    "rlhf": 630,
    "grpo": 610,
}
LINES_OF_ALL_NINE, LINES_OF_PLUMBING, LINES_OF_HEADER, LINES_OF_TRAIN = 5_280, 208, 50, 110

# `git diff --numstat` without the headers: lines removed and added at most.
DIFFERENCES = {
    ("reinforce", "reinforce_baseline"): (12, 70),
    ("reinforce_baseline", "a2c"): (89, 116),
    ("a2c", "a3c"): (55, 103),
    ("a2c", "trpo"): (66, 147),
    ("a2c", "ppo"): (65, 183),
    ("ddpg", "td3"): (25, 38),
    ("td3", "sac"): (51, 79),
    ("rlhf", "grpo"): (52, 34),
}

# A top-level definition with one name has one text, except that these names stand for one thing in
# some scripts and for another in others, and the last ones for something new in each.
FAMILIES = {
    "Actor": [ON_POLICY, ["ddpg", "td3"]],
    "Critic": [[name for name in ON_POLICY if name != "reinforce"], OFF_POLICY],
    "mlp": [ON_POLICY, OFF_POLICY],
    "Adam": [OFF_POLICY],  # ppo's clips the gradient
    "rollout": [ROLLOUTS, LANGUAGE],
}
DIFFERENT = {"Args", "train", "update", "td_target", "ppo_objective"}

TRAPS = {  # the sentence, and words by which another wording of it would be found
    "V(s') = 0 only if terminated; a time limit still bootstraps.": r"# .*only if terminated",
    "The target is a constant: no gradient flows through it.": r"# .*target is a constant",
    "Ascent on the objective = descent on its negative.": r"# .*[Aa]scent",
    "Sum log-probabilities over action dimensions: (B, A) → (B,).": r"# .*[Ss]um log",
    "next_obs is the true successor, even when the env has just been reset.": r"# .*true successor",
}


def source(script: str) -> str:
    return (ROOT / f"{script}.py").read_text()


def without_header(script: str) -> str:
    return source(script).split('"""', 2)[2]


PLUMBING = re.compile("# ── Plumbing: .*─\n")


def plumbing(script: str) -> str:
    return PLUMBING.split(source(script))[1]


def fix(script: str) -> None:
    """Copies the plumbing of a script into the other eight."""
    for other in SCRIPTS:
        start = PLUMBING.search(source(other)).end()
        (ROOT / f"{other}.py").write_text(source(other)[:start] + plumbing(script))


def header(script: str) -> str:
    return source(script).split('"""')[1]


def definitions(script: str) -> dict[str, str]:
    """The text of each top-level function and class, decorators included."""
    lines, found = source(script).splitlines(), {}
    for node in ast.parse(source(script)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def comments_on_code(script: str) -> str:
    """The comments at the ends of lines of code."""
    lines = iter(source(script).splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return "\n".join(
        token.string
        for token in tokens
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    )


# ── The same text ─────────────────────────────────────────────────────────────────────────────────


def repeated() -> list[tuple[str, list[str]]]:
    """The names that several scripts define, above the plumbing, and these scripts."""
    defined = {}
    for script in FILES:
        for name in definitions(script).keys() - set(
            re.findall(r"(?m)^(?:def|class) (\w+)", plumbing(script))
        ):
            defined.setdefault(name, []).append(script)
    groups = [(name, x) for name, scripts in defined.items() for x in FAMILIES.get(name, [scripts])]
    return sorted((name, x) for name, x in groups if len(x) > 1 and name not in DIFFERENT)


@pytest.mark.parametrize("name, scripts", repeated())
def test_same_definitions(name, scripts):
    texts = {script: definitions(script)[name] for script in scripts}
    assert {script: texts[scripts[0]] for script in scripts} == texts


def test_same_plumbing():
    """All that stands below the last ruler, between the definitions too."""
    texts = {script: plumbing(script) for script in SCRIPTS}
    assert {script: texts["ppo"] for script in SCRIPTS} == texts
    assert len(texts["ppo"].splitlines()) <= LINES_OF_PLUMBING
    assert sum(len(source(script).splitlines()) for script in SCRIPTS) <= LINES_OF_ALL_NINE


def test_plumbing_of_language_models():
    """rlhf.py and grpo.py have the same, as they have one language, and most is that of the others."""
    languages = [source(script).split("# ── Language")[1] for script in LANGUAGE]
    assert len({text.split("# ── Networks")[0] for text in languages}) == 1
    texts = [plumbing(script).replace("total_responses", "total_timesteps") for script in LANGUAGE]
    assert texts[0] == texts[1]
    others = set(plumbing("ppo").splitlines())
    assert len([line for line in texts[0].splitlines() if line not in others]) <= 32


def test_same_arguments():
    """The same name has the same type, and below "# Run" the same comment."""
    lines = {}
    for script in FILES:
        run = definitions(script)["Args"].split("    # Run\n")[1]
        for line in run.splitlines():
            lines.setdefault(line.split(":")[0], set()).add(line)
        assert line.strip().startswith("resume")
    assert all(len(texts) == 1 for texts in lines.values()), lines
    for script in SCRIPTS:  # each has its comment, which becomes the text of --help
        fields = re.findall(r"(?m)^    \w+: .+$", definitions(script)["Args"])
        module = importlib.import_module(script)
        assert len(fields) == len(inspect.signature(module.Args).parameters)
        assert all(re.search(r"  # \S", line) for line in fields)
        names = [line.split(":")[0].strip() for line in fields[:3]]
        assert names == ["env_id", "total_timesteps", "seed"]


@pytest.mark.parametrize("pair", DIFFERENCES, ids="-".join)
def test_neighbours_differ_by_their_idea(pair, tmp_path):
    for script in pair:
        (tmp_path / f"{script}.py").write_text(without_header(script))
    command = ["git", "diff", "--no-index", "--numstat", *(f"{script}.py" for script in pair)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    added, removed, _ = done.stdout.split(maxsplit=2)
    most_removed, most_added = DIFFERENCES[pair]
    assert int(removed) <= most_removed and int(added) <= most_added, done.stdout


# ── Each script for itself ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", FILES)
def test_sizes(script):
    text = source(script)
    assert len(text.splitlines()) <= LINES[script]
    assert max(map(len, text.splitlines())) <= 100
    assert len(header(script).splitlines()) <= LINES_OF_HEADER
    assert len(definitions(script)["train"].splitlines()) <= LINES_OF_TRAIN


@pytest.mark.parametrize("script", FILES)
def test_order_of_the_file(script):
    """The rulers; the policy and its critic first; the header's headings."""
    rulers = re.findall(r"(?m)^# ── (.+?) ─+$", source(script))
    expected = ["Arguments", *["Language"] * (script in LANGUAGE), "Networks", "Equations"]
    expected += ["Replay buffer"] * (script in OFF_POLICY) + ["Algorithm"]
    expected += ["Several processes"] * (script == "ppo")
    expected += ["One compiled graph"] * (script in ["ppo", *OFF_POLICY])
    where = "every script" if script in SCRIPTS else "rlhf.py and grpo.py"
    assert rulers == [*expected, f"Plumbing: the same text in {where}"]
    if script in SCRIPTS:
        networks = source(script).split("# ── Networks")[1].split("\n# ──")[0]
        names = re.findall(r"(?m)^(?:class|def) (\w+)", networks)
        first = ["Actor"] if script == "reinforce" else ["Actor", "Critic"]
        assert names[: len(first)] == first
    headings = ["Idea", "Equations", "Algorithm", "Not", "Run"]
    assert re.findall(rf"(?m)^({'|'.join(headings)})\b", header(script)) == headings


@pytest.mark.parametrize("script", FILES)
def test_what_is_not_in_the_text(script):
    """Each entry of the header's list has a number, from 1 on, and each number stands in the code;
    "as in X.py, and" goes on from X's last number."""
    numbers, first = [], script
    while first:
        section = header(first).split("\nNot in the text")[1].split("\n\n")[0]
        numbers = [int(x) for x in re.findall(r"(?m)^ +\[impl (\d+)\]", section)] + numbers
        first = next(iter(re.findall(r"as in (\w+)\.py, and", section)), None)
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    code = re.findall(r"\[impl ?(\d*)\]", without_header(script))
    assert {*map(str, numbers)} == {*code}


@pytest.mark.parametrize("script", FILES)
def test_imports_nothing_of_this_project(script):
    allowed = {"gymnasium", "numpy", "torch", "tyro", "tqdm", "wandb"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse(source(script))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize("script", FILES)
def test_steps_of_the_algorithm(script):
    """The header's numbers 1, 2, ... stand as comments in the code, in that order."""
    parts = definitions(script)
    box = header(script).split("\nAlgorithm")[1].split("\n\n")[0]
    numbers = [int(number) for number in re.findall(r"(?m)^ +(\d+)\. ", box)]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    code = "".join(parts.get(name, "") for name in ("train", "work", "update"))
    # One comment may cover two steps that one line of code does.
    assert [int(number) for number in re.findall(r"(?m)^ +# (\d+)\. ", code)] == numbers


@pytest.mark.parametrize("script", FILES)
def test_trap_sentences(script):
    """The same words wherever one of the five is said, in comments that may break the line."""
    text = re.sub(r"\n +# ", " ", source(script))
    for sentence, pattern in TRAPS.items():
        assert len(re.findall(pattern, source(script))) == text.count(sentence), sentence


def test_traps_are_said_where_they_apply():
    said = {sentence: [s for s in FILES if sentence in source(s)] for sentence in TRAPS}
    bootstrap, target, ascent, log_prob, successor = said.values()
    assert successor == ROLLOUTS + OFF_POLICY
    assert bootstrap == target == [*successor, "rlhf"]
    assert ascent == [script for script in FILES if script not in ("trpo", "sac")]
    assert log_prob == [*ON_POLICY, "sac"]


# ── Labels ────────────────────────────────────────────────────────────────────────────────────────


def equations_of(script: str) -> list[tuple[str, str, str]]:
    """label, equation and text of each definition whose docstring starts with a labelled equation."""
    found = []
    for name, text in definitions(script).items():
        node = ast.parse(text).body[0]
        match = re.match(r"(.+?)  \[([\w./-]+)\]", (ast.get_docstring(node) or "").split("\n")[0])
        if match and LABEL.match(f"[{match[2]}]"):
            found.append((match[2], match[1], text))
    return found


@pytest.mark.parametrize("script", FILES)
def test_equations_are_stated_as_in_the_header(script):
    """The first docstring line has the header's equation, and a line of code carries its label."""
    stated = dict(re.findall(r"(?m)^ +\[([\w./-]+)\] +(.+?)(?:   .*)?$", header(script)))
    assert len(equations_of(script)) >= 2
    for label, equation, text in equations_of(script):
        assert equation == stated[label].removesuffix(", so that"), label
        assert re.search(rf"\S.*  # .*\[{re.escape(label)}\]", text.split('"""', 2)[2]), label


def equation_table() -> dict[str, tuple[list[str], list[str]]]:
    """label → scripts whose code carries it, scripts that tell it, from the table of equations.md."""
    rows = {}
    for line in (ROOT / "equations.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and LABEL.match(f"[{cells[0].split(' ')[0]}]"):
            code, told = (re.findall(r"\w+", cell) for cell in cells[3:])
            rows[cells[0].split(" ")[0]] = code, SCRIPTS if told == ["all"] else told
    return rows


@pytest.mark.parametrize("script", FILES)
def test_labels_of_the_script(script):
    """Each stands in the table. What the table says to be in the code is on a line of code, there
    and nowhere else, or beside the header's box; what it says to be told is anywhere."""
    rows, text, on_code = equation_table(), source(script), comments_on_code(script)
    assert set(LABEL.findall(text)) <= rows.keys()
    on_code += header(script).split("\nAlgorithm")[1].split("\n")[0]  # the box
    for label, (code, told) in rows.items():
        assert {*code, *told} <= {*FILES}
        if script in code:
            assert f"[{label}]" in on_code, f"no line of code carries [{label}]"
        if script in told:
            assert f"[{label}]" in text, f"[{label}] is not told"
    for label in set(LABEL.findall(on_code)):
        assert script in rows[label][0] + rows[label][1], f"[{label}] is not in the table"


def test_each_equation_has_a_test():
    """Each label that stands on a line of code stands in a docstring of a test, which
    `python -m pytest -k AC-09b` runs."""
    tested = set()
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                tested |= set(LABEL.findall(ast.get_docstring(node) or ""))
    on_code = {label for script in FILES for label in LABEL.findall(comments_on_code(script))}
    assert len(on_code) > 30 and on_code <= tested, on_code - tested


if __name__ == "__main__":
    assert len(sys.argv) == 3 and sys.argv[1] == "--fix", __doc__
    fix(sys.argv[2].removesuffix(".py"))
