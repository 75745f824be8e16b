"""The pages that docs/build.py writes, and the exercises."""

import html.parser
import itertools
import json
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import pytest
from conftest import LABEL, LANGUAGE, ROOT, SCRIPTS, TESTS

import exercises

pytest.importorskip("pygments")
sys.path.append(str(ROOT / "docs"))
import build  # noqa: E402

FILES = SCRIPTS + LANGUAGE
NOT_CLOSED = set("html meta link img br p li tr td th thead tbody mspace".split())


class Page(html.parser.HTMLParser):
    """Ids, links, headings, the lines of code and the cards before them; asserts the nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.in_code, self.card = text, [], False, set()
        self.ids, self.links, self.headings, self.lines, self.cards = [], [], [], [], [set()]
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[x] for x in ("href", "src") if x in attributes]
        self.headings += [int(tag[1])] if re.fullmatch(r"h\d", tag) else []
        if tag == "code" and re.fullmatch(r"L\d+", attributes.get("id", "")):
            self.lines.append("")
            self.cards.append(self.card)
            self.in_code, self.card = True, set()
        elif attributes.get("class") == "key":
            self.card.add(attributes["href"].rpartition("#")[2])
        self.open += [] if tag in NOT_CLOSED else [tag]

    def handle_endtag(self, tag):
        assert tag in NOT_CLOSED or self.open.pop() == tag, self.getpos()
        self.in_code &= tag != "code"

    def handle_data(self, text):
        if self.in_code:
            self.lines[-1] += text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build.build(folder)
    pages = {path.name: Page(path.read_text()) for path in folder.glob("*.html")}
    return folder, pages


def test_mathematics():
    """Indices, a fraction without its brackets, limits, accents, primes; and what is refused."""
    assert build.mathml("r_t") == "<math><msub><mi>r</mi><mi>t</mi></msub></math>"
    minus = "<mrow><mi>a</mi><mo form=infix>−</mo><mi>b</mi></mrow>"
    assert f"<mfrac>{minus}<mrow><mi>c</mi></mrow></mfrac>" in build.mathml("(a−b)/c", True)
    assert "<munderover><mo>∑</mo><mrow><mi>k</mi>" in build.mathml("Σ_{k=t..T}", display=True)
    assert "<mover accent=true><mi>A</mi><mo stretchy=false>ˆ</mo></mover>" in build.mathml("Â_t")
    assert build.mathml("π_θ'").index("′") < build.mathml("π_θ'").index("</msub>")
    for text in ("a_", "a^", "√", "(a", "a)", "{a]", "a $ b", "\\frac"):
        with pytest.raises(ValueError, match="unknown in an equation|is not closed"):
            build.mathml(text)


@pytest.mark.parametrize("page", [*FILES, "equations", "exercises", "numbers"])
def test_no_notation_is_left(site, page):
    """The equations of the headers and of equations.md are typeset: no _x or ^x remains."""
    text = site[1][f"{page}.html"].text
    text = re.sub(r"(?s)<(math|code|pre)\b.*?</\1>|<[^>]*>|reinforce_baseline|rl_f", "", text)
    assert not re.findall(r"\S*[A-Za-zα-ωΑ-Ω)\]][_^][{\w(]\S*", text)


@pytest.mark.parametrize("script", FILES)
def test_code(site, script):
    """It is the file, to the last space; each label, step and [impl N] has a card before its line."""
    page, text = site[1][f"{script}.html"], (ROOT / f"{script}.py").read_text()
    assert "".join(page.lines) == text == (site[0] / f"{script}.py").read_text()
    lines = text.splitlines()
    args = range(lines.index("class Args:"), lines.index("", lines.index("class Args:")))
    for n, line in enumerate(lines, 1):
        labels = set(LABEL.findall(line.partition("#")[2]) if n not in args else ())
        labels |= {f"impl-{number}" for number in re.findall(r"\[impl (\d+)\]", line)}
        labels |= {"algorithm"} if re.match(r" +# \d+\. ", line) else set()
        assert n < args.start or labels <= page.cards[n], f"line {n}"


def test_lessons(site):
    """What is marked as removed stands in the script before, what as added in the one after."""
    for after, (before, _) in build.LESSONS.items():
        text = re.sub("<ul class=card.*?</ul>", "", site[1][f"{before}-{after}.html"].text)
        for tag, script in (("del", before), ("ins", after)):
            lines = re.findall(rf"(?s)<{tag}><code[^>]*>(.*?)\n</code></{tag}>", text)
            lines = {html.unescape(re.sub("<[^>]*>", "", line)) for line in lines}
            assert lines and lines <= {*(ROOT / f"{script}.py").read_text().splitlines()}


def test_pages(site):
    """Links lead somewhere, ids are unique, nothing is fetched, one h1, no level is left out."""
    folder, pages = site
    assert not re.search(r"@import|url\(", (folder / "style.css").read_text())
    for name, page in pages.items():
        assert len(page.ids) == len({*page.ids}), name
        assert not re.search(r"<script|<[^>]*\son\w+=", page.text), name
        levels = zip([0, *page.headings], page.headings)
        assert page.headings.count(1) == 1 and all(b <= a + 1 for a, b in levels), name
        for link in page.links:
            path, _, anchor = unquote(link).partition("#")
            assert (folder / (path or name)).is_file(), (name, link)
            assert not anchor or anchor in pages[path or name].ids, (name, link)


PROBE = """<script>
onload = () => {
  document.querySelectorAll("details").forEach(x => x.open = true);
  const code = document.querySelector("#code .src");
  if (code) getSelection().selectAllChildren(code);
  const width = document.documentElement.scrollWidth;
  parent.postMessage([location.pathname, width, String(getSelection())], "*");
};
</script>"""
FRAMES = """<!doctype html><script>
const all = [];
onmessage = event => {
  if (all.push(event.data) == COUNT)
    document.body.textContent = encodeURIComponent(JSON.stringify(all));
};
</script><body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(site, tmp_path, width):
    """No page scrolls sideways; what is copied from a listing, folds open, is the file."""
    folder, pages = site
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    frames = FRAMES.replace("COUNT", str(len(pages)))
    for name, page in pages.items():
        (tmp_path / name).write_text(page.text + PROBE)
        frames += f"<iframe src={name} width={width} height=900></iframe>"
    (tmp_path / "frames.html").write_text(frames)
    command = "chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=60000"
    words = [*command.split(), "--dump-dom", f"file://{tmp_path}/frames.html"]
    text = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(unquote(re.search("<body>([^<]+)</body>", text)[1]))
    assert len(found) == len(pages)
    for path, scroll_width, copied in found:
        name = path.rpartition("/")[2]
        assert scroll_width <= width, name
        if name.removesuffix(".html") in FILES:
            source = (ROOT / name).with_suffix(".py").read_text()
            assert copied.rstrip().splitlines() == source.rstrip().splitlines(), name


def test_markdown():
    """Headings have ids; a link to a file that the site lacks is its name; markers are dropped."""
    links = "[a](../claims.md#be-1) [b](ppo.py) [c](benchmarks/claims.py) [d](https://e.org)"
    text = f"## Be 1 (L10 4)\n\n{links} **x** `y`\n\n<!-- 1 -->\n|  | n |\n|---|---|\n| a | 1 |\n"
    links = (
        "<a href='claims.html#be-1'>a</a> <a href='ppo.html'>b</a> c <a href='https://e.org'>d</a>"
    )
    body = f"<p class=p>{links} <b>x</b> <code>y</code></p>"
    body += f"<table><thead><tr><th><th>{build.prose('n')}<tbody><tr><td>a<td>1</table>"
    assert build.markdown(text) == build.section("<h2>Be 1</h2><p>L10 4</p>", body, " id=be-1")


def test_numbers():
    """The figures are small, one for each failure."""
    text = (ROOT / "docs/numbers.md").read_text()
    figures = [ROOT / "docs" / path for path in re.findall(r"numbers/\w+\.svg", text)]
    assert len(figures) == len(set(figures)) == text.count("\n## ") - 1  # the table has none
    assert all(path.stat().st_size < 40_000 for path in figures)


def test_contrast():
    """WCAG 2 asks for 4.5 between text and background; in the light and in the dark."""

    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    css = (ROOT / "docs/style.css").read_text()
    pairs = re.findall(r"([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    grounds = [colours for name, *colours in pairs if name in ("--bg", "--mark", "--ins", "--del")]
    texts = [colours for name, *colours in pairs if name in ("--ink", "--soft", "--link", "color")]
    assert len(grounds) == 4 and len(texts) == 6
    for scheme in (0, 1):
        for text, ground in itertools.product(texts, grounds):
            low, high = sorted(luminance(x[scheme]) for x in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize("script", FILES)
def test_blanks(script):
    """Each statement with a label raises; all else is the script."""
    found, before = exercises.labelled(f"{script}.py"), (ROOT / f"{script}.py").read_text()
    after = exercises.blanked(f"{script}.py", found)
    compile(after, script, "exec")
    blanks = re.findall(r'raise NotImplementedError\("\[.+\] .*\.\.\."\)\n', after)
    assert len(blanks) == len(found) > 5
    assert before.split('"""')[1] == after.split('"""')[1]
    gone = "return torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()  # [AC-09b]"
    blank = 'raise NotImplementedError("[AC-09b] return ...")'
    assert gone not in after and (gone in before) == (blank in after)


def test_exercises():
    """Bugs match once and compile; commands name labels and tests that exist, and every bug."""
    text = (ROOT / "docs/exercises.md").read_text()
    for bug in exercises.BUGS.values():
        assert (ROOT / bug["script"]).read_text().count(bug["old"]) == 1
        compile(exercises.with_bug(**bug), bug["script"], "exec")
    assert re.findall(r"exercises\.py --bug (\d)", text) == [*exercises.BUGS]
    for script, labels in re.findall(r"(?m)^ +python exercises\.py (\w+\.py) (.+)", text):
        assert {*labels.split()} <= {x for _, found in exercises.labelled(script) for x in found}
    tests = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    for words in re.findall(r"-k \"?([^\"\n`]+)", text):
        assert all(f"[{x}]" in tests or f"test_{x}" in tests for x in words.split(" or "))


def test_sizes():
    sizes = {"docs/build.py": 430, "docs/style.css": 90, "docs/plots.py": 80, "exercises.py": 80}
    for path, most in sizes.items():
        assert len((ROOT / path).read_text().splitlines()) <= most
