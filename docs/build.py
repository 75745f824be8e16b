"""Writes docs/site: the scripts beside their equations, the lessons, all equations, other pages.

`pip install '.[docs]' && python docs/build.py`; then open docs/site/index.html.
"""

import ast
import difflib
import itertools
import re
import shutil
import unicodedata
from collections import namedtuple
from html import escape
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = "reinforce reinforce_baseline a2c a3c trpo ppo rlhf grpo ddpg td3 sac".split()
PAGES = [ROOT / "claims.md", ROOT / "docs/exercises.md", ROOT / "docs/numbers.md"]
NAMES = ["index", *SCRIPTS, "equations", *(x.stem for x in PAGES)]
TEXTS = {path.name: path.read_text() for path in ROOT.glob("*.md")}
LABEL = re.compile(r"\[((?:AC|CS|L3|L10|P7|X)-[\w.]+)\]")

# ── Mathematics: the headers' notation (Unicode, _x, ^x, _{...}) as MathML ────────────────────────
FUNCTIONS = set("min max argmax clip log exp tanh softmax mean std dim".split())
LIMITS = set("∑∫") | {"min", "max", "argmax"}  # what follows _ and ^ stands below and above them
RELATIONS, PRODUCTS, CLOSING = set("=≤≥<>←∼≈≻→∝+−±,;/"), set("·⊙×|‖"), dict(["()", "[]", "{}"])
RAISED = dict(zip("₀₁₂₃₄₅₆₇₈₉²³ᵀ*", "_0 _1 _2 _3 _4 _5 _6 _7 _8 _9 ^2 ^3 ^⊤ ^∗".split()))
RAISED = str.maketrans(RAISED | {"Σ": "∑", "⁻": "^{−1}", "¹": ""})
TOKEN = re.compile(
    r"[a-z]{2,}(?:_[a-z]{2,})+|[A-Za-z]{3,}|[A-Z]{2,}(?![\u0300-\u036f])"  # words
    r"|\d+,\d{3}|\d*\.?\d+(?:e-\d+)?|\.\.+|[^\W\d_][\u0300-\u036f]?'?|\s+|."
)
GROUP = "(?!)"
for _ in range(4):  # brackets in brackets
    GROUP = rf"[(\[{{](?:[^()\[\]{{}}]|{GROUP})*[)\]}}]"
TERM = rf"((?:[^\s()\[\]{{}}{''.join(RELATIONS | PRODUCTS)}]|{GROUP})+)"


def mathml(text: str, display: bool = False) -> str:
    """A formula as MathML, with fractions and limits if displayed."""
    text = re.sub(r"(?<![A-Za-z])w([\di])('?)(?![A-Za-z])", r"w\2_\1", text)  # w1' is w'_1
    text = re.sub(r"(\w)_i'", r"\1'_i", text)  # the prime belongs to Q, and in _θ' to the index
    text = re.sub(r"([_^])(θ'|w'?(?:_[\di])?|−[\d.]+)", r"\1{\2}", text)
    text = re.sub(r"_\{([^{}]*)\.\.([^{}]*)\}", r"_{\1}^{\2}", text)  # Σ_{k=t..T}
    if display:  # (a−b)/c is ⁄{a−b}{c}
        text = re.sub(f"{TERM}/{TERM}", r"⁄{\1}{\2}", text)
        text = re.sub(rf"\{{\(((?:[^()]|{GROUP})*)\)\}}", r"{\1}", text)
    row = parse(TOKEN.findall(text.translate(RAISED)), "", display)
    return f"<math{' displaystyle=true' * display}>{row}</math>"


def atom(token: str) -> str:
    if token.endswith("'"):
        return f"<mrow>{atom(token[:-1])}<mo lspace=0 rspace=0>′</mo></mrow>"
    base, *accent = unicodedata.normalize("NFD", token) if len(token) < 3 else [token]
    if accent in (["\u0302"], ["\u0304"]):  # Â, H̄
        sign = "ˆ" if accent == ["\u0302"] else "¯"
        return f"<mover accent=true>{atom(base)}<mo stretchy=false>{sign}</mo></mover>"
    if not re.fullmatch(r"[α-ωΑ-Ω−⊤∑∫∗∇∂∞·½]|[A-Za-z_]+|[\d.,e-]+", token):
        raise ValueError(f"unknown in an equation: {token!r}")
    tag = "mi" if len(token) == 1 or token in FUNCTIONS else "mtext"
    tag = "mn" if token[-1].isdecimal() else "mo" if token in "−⊤∑∫∗..." else tag
    return f"<{tag}{' mathvariant=normal' * (token in '∇∂∞Δ·½')}>{token}</{tag}>"


def argument(tokens: list[str], display: bool) -> str:
    """What stands after _, ^, √ or ⁄: a group in brackets, or an atom."""
    token = tokens.pop(0) if tokens else "?"
    if token in CLOSING:
        return f"<mrow>{parse(tokens, CLOSING[token], display)}</mrow>"
    return atom(token)


def parse(tokens: list[str], stop: str, display: bool) -> str:
    """MathML of the tokens up to the closing bracket `stop`, or of all."""
    row, before, spaced = "", "operator", False
    while tokens and tokens[0] != stop:
        token, kind = tokens.pop(0), "operand"
        if token.isspace():
            spaced = True
            continue
        if token == "√":
            html = f"<msqrt>{argument(tokens, display)}</msqrt>"
        elif token == "⁄":
            html = f"<mfrac>{argument(tokens, display)}{argument(tokens, display)}</mfrac>"
        elif token in CLOSING:
            kind, inner = "bracket", parse(tokens, CLOSING[token], display)
            fence = "<mo>{}</mo>" if "<mfrac" in inner else "<mo stretchy=false>{}</mo>"
            html = f"<mrow>{fence.format(token)}{inner}{fence.format(CLOSING[token])}</mrow>"
        elif token in RELATIONS | PRODUCTS and (token != "·" or before != "operator" or not tokens):
            kind = "operand" if tokens[:1] == ["_"] else "operator"  # Q(s,a)|_{a=...}
            form = "prefix" if before == "operator" and tokens else "infix"
            if not row and not tokens:  # a word of its own, between the spaces of the text
                form += " lspace=0 rspace=0"
            elif token in PRODUCTS:
                form += " lspace=.17em rspace=.17em stretchy=false"
            html = f"<mo form={form}>{escape(token)}</mo>"
        else:
            kind, html = "function" if token in FUNCTIONS | LIMITS else "operand", atom(token)
        scripts = {"_": "", "^": ""}
        while tokens and tokens[0] in scripts:
            mark, inner = tokens.pop(0), argument(tokens, False)
            scripts[mark] = inner.replace("form=infix", "form=infix lspace=0 rspace=0")
        if any(scripts.values()):
            names = ("under", "over") if display and token in LIMITS else ("sub", "sup")
            tag = "m" + "".join(x for x, inner in zip(names, scripts.values()) if inner)
            html = f"<{tag}>{html}{scripts['_']}{scripts['^']}</{tag}>"
        is_factor = spaced or before == "function" and kind != "bracket"
        row += "<mspace width=.18em />" * (is_factor and "operator" not in (before, kind)) + html
        before, spaced = kind, False
    if stop and not tokens:
        raise ValueError(f"a bracket is not closed by {stop}")
    tokens[:1] = []
    return row


# ── Prose: its mathematical words are typeset, labels and names of scripts are links ──────────────
# A remark in brackets.
ENGLISH = r"\((?:`|[^()]*(?<![\w_])(?!(?:log|exp|min|mean)\b)[a-z]{2,}(?![\w_(]))"
LINK = r"!?\[([^\]]+)\]\(([^)]+)\)"
WORD = re.compile(rf"`[^`]+`|{LINK}|(?:[^\s()\[\]{{}}]|(?<=[^\s(\[]){GROUP}|(?!{ENGLISH}){GROUP})+")
MATHS = re.compile(
    r'[Ͱ-Ͽ\u0302\u0304Âĝ√½=≤≥<>←∼≈≻·⊙±−∝|‖_^₀-₉²³ᵀ⁻×∇∂∞∫](?!.*")|\S→|\d/[A-Z]'
    r"|^(?:[B-HJ-Zb-z]\d?'?|a'|\+)$|^(?:[A-Za-z]'?|std|mean|exp)[(\[]"
)
CODE = re.compile(r"^(?:`([^`]+)`|(--[\w-]+|[a-z][a-z\d]*_[a-z_]{2,}\w*(?!\.py|\w)))")
ONE = r"<math(?:(?!</math>).)*</math>"  # stays with its comma, and an operator with what follows it
KEEP = re.compile(rf"<math[^>]*><mo[^>]*>[=≤←∼≈+−]</mo></math> {ONE}[^\s<]*|{ONE}[^\s<]+")
HEADING = re.compile(r"(?ms)^(#+) ([^\n]+?)(?: \(([^()\n]+)\))?\n(.*?)(?=^#|\Z)")


def prose(text: str, display: bool = False) -> str:
    def word(found: re.Match) -> str:
        if found[0].startswith("!["):
            return f"<img src={Path(found[2]).name} alt='{escape(found[1])}'>"
        if found[1]:  # [name](path); of a file that the site does not have, the name
            path = re.sub(rf"^(?:\.\./|docs/)?({'|'.join(NAMES)})\.(?:md|py)", r"\1.html", found[2])
            is_page = re.match(r"#|\w+\.html|https:", path)
            return f"<a href='{path}'>{escape(found[1])}</a>" if is_page else escape(found[1])
        core, tail = re.fullmatch(r"(.*?)((?:-[a-z]{2,})?[,.;:]*)", found[0]).groups()
        rest = found.string[found.end() :]
        letter = core in ("a", "A", "I") and re.match(r" [=∼≈·−+]", rest) or found[0] == "a,"
        if CODE.match(core):
            return CODE.sub(r"<code>\1\2</code>", escape(found[0], False))
        if (letter or MATHS.search(core)) and not LABEL.search(core) and not core.endswith(".py"):
            return mathml(core, display) + tail  # a piece of its own: no line breaks inside one
        html = LABEL.sub(r"\1", KNOWN.sub(r"<a href=equations.html#\1>\1</a>", escape(found[0])))
        return re.sub(rf"\b({'|'.join(SCRIPTS)})\.py", r"<a href=\1.html>\1</a>", html)

    html = WORD.sub(word, text.replace("∣", "|").replace(" / ", "/"))
    html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html)
    return KEEP.sub(r"<span class=nw>\g<0></span>", html)


# ── Reading: tables, headers, code ────────────────────────────────────────────────────────────────
# kind: eq, step, impl or p, a paragraph; key: the label, the number of the step or of [impl].
Item = namedtuple("Item", "kind key text remark depth", defaults=("", 0))
ITEM = re.compile(r" {4}(?:(\d+)\.|\[(impl )?([\w.-]+)\])( +)(.*)")
# Stands before the source of an [impl] line: one space where the line is full.
SOURCE = re.compile(r" {2,}| (?=[A-Z]\w+ \d{4}|Baselines,|CleanRL|Spinning Up|PyTorch,)")


def items_of(lines: list[str], notes: list[tuple]) -> list[Item]:
    """A section of a header; notes: what is taken away of which [impl], and what that costs."""
    items = []
    for line in lines:
        if found := ITEM.match(line):
            number, impl, label, gap, text = found.groups()
            kind = "step" if number else "impl" if impl else "eq"
            text, *remark = re.split(SOURCE if impl else " {3,}", text, maxsplit=1)
            remark += [f"\n{x}: return {y.replace('-', '−')}" for n, x, y in notes if n == label]
            items.append(Item(kind, label or number, text, "".join(remark), len(gap) // 4))
        elif items and (line.startswith(" " * 7) or items[-1].kind == "p"):
            items[-1] = items[-1]._replace(text=f"{items[-1].text} {line.strip()}")
        else:
            items.append(Item("p", "", line.strip()))
    return items


def table(text: str) -> list[list[str]]:
    """The rows of all tables of a text."""
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
    return [row for row in rows if "".join(row).strip("-")]


INTRODUCTION, _, EQUATIONS = TEXTS["equations.md"].partition("\n## Equations")
EQUATIONS = {row[0].split()[0]: row for row in table(EQUATIONS)[1:]}
KNOWN = re.compile(rf"\[({'|'.join(map(re.escape, EQUATIONS))})\]")  # and no sections of the texts
# [impl N] of ppo.py: what is taken away, and the change of return.
ABLATIONS = re.findall(r"(?m)^\| \[impl (\d+)\] (.+?) \|.*\| (.+?) \|$", TEXTS["benchmarks.md"])
LESSONS = re.findall(r"(?m)^\| (\w+) → (\w+) \| (.*) \|$", TEXTS["README.md"])[1:]
LESSONS = {after: (before, what) for before, after, what in LESSONS}  # td3: (ddpg, what)
TESTS: dict[str, set] = {}  # label → (number of labels, link) of its tests, from build()


class Source:
    """A file: its lines, plain and highlighted; its top-level parts; where its labels stand."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, text = path, path.stem, path.read_text()
        html = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
        self.raw, self.html = text.splitlines(), html.split("\n")
        docstring, *nodes = ast.parse(text).body
        self.end, self.parts = docstring.end_lineno, {}  # of the header; name → its lines
        for name, group in itertools.groupby(nodes, lambda node: getattr(node, "name", "")):
            first, *_, last = [*group] * 2
            start = min(x.lineno for x in [first, *getattr(first, "decorator_list", [])])
            self.parts[name or ast.unparse(first).split()[0]] = range(start, last.end_lineno + 1)
        self.docstrings = {x.name: ast.get_docstring(x) or "" for x in nodes if hasattr(x, "name")}
        self.title, *blocks = docstring.value.value.strip().split("\n\n")
        self.sections = {}
        for heading, *lines in (block.split("\n") for block in blocks):
            if found := re.match(r"(Changed from \w+\.py|Run): (.*)", heading):
                heading, line = found.groups()
                lines = [f"`{line}`" if heading == "Run" else line, *lines]
            self.sections[heading] = items_of(lines, ABLATIONS if self.name == "ppo" else [])
        self.items = {(x.kind, x.key): x for items in self.sections.values() for x in items}
        self.labels, args = {}, self.parts.get("Args", ())
        for n in sorted(range(self.end + 1, len(self.raw) + 1), key=lambda n: (n in args, n)):
            for label in LABEL.findall(self.raw[n - 1].partition("#")[2]):
                if n not in args or label not in self.labels:  # of Args what stands nowhere else
                    self.labels.setdefault(label, []).append(n)

    def line(self, n: int, own: bool = True, card: bool = True) -> str:
        """Line n as it stands in the file, and before it its card; own: on the file's own page."""
        page, anchor = ("", f" id=L{n}") if own else (f"{self.name}.html", "")
        number = f"<a class=num href={page}#L{n} data-n={n} tabindex=-1 aria-hidden=true></a>"
        indent = len(self.raw[n - 1]) - len(self.raw[n - 1].lstrip())
        html = self.card(n, own) if card and n > self.end else ""
        code = KNOWN.sub(r"<a href=equations.html#\1>\g<0></a>", self.html[n - 1])
        if own and card:
            code = re.sub(rf"equations\.html#({'|'.join(self.labels)})>", r"#\1>", code)
        return html + f"<code{anchor} style=--i:{indent}>{number}{code}\n</code>"

    def card(self, n: int, own: bool) -> str:
        """What stands beside line n: a step, equations, what is not in the text."""
        line, html, page = self.raw[n - 1], "", f"{self.name}.html"
        for number in re.findall(r"^ +# (\d+)\. ", line):
            if item := self.items.get(("step", number)):
                html += entry(item, f"{page}#algorithm", anchor=f" id=step-{number}" * own)
        for label in LABEL.findall(line.partition("#")[2]):
            if n in self.labels[label]:
                item = self.items.get(("eq", label)) or Item("eq", label, EQUATIONS[label][1])
                anchor = f" id={label}" * (own and n == self.labels[label][0])
                html += entry(item, f"equations.html#{label}", compared(label), anchor)
        for number in re.findall(r"\[impl (\d+)\]", line):
            if item := self.items.get(("impl", number)):
                html += entry(item, f"{page}#impl-{number}", prose(item.remark))
        return f"<ul class=card data-n={n}>{html}</ul>" if html else ""


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────
def compared(label: str) -> str:
    """The tests that name a label, and what they compare the equation with."""
    tests = ", ".join(link for _, link in sorted(TESTS.get(label, ()))[:2])
    return ": ".join(filter(None, [tests, prose(EQUATIONS[label][2].strip("-"))]))


def entry(item: Item, href: str = "", more: str = "", anchor: str = "") -> str:
    name = f"[impl {item.key}]" if item.kind == "impl" else item.key
    key = f"<a class=key href={href}>{name}</a> " * bool(href)
    text = f"<div class=text>{prose(item.text, item.kind[:2] == 'eq')}</div>"
    text = key + text if item.kind == "step" else text + key
    more = f"<div class=more>{more}</div>" * bool(more)
    return f"<li class='{item.kind}'{anchor} style=--i:{item.depth}>{text}{more}</li>"


def section(head: str, body: str, anchor: str = "") -> str:
    return f"<section{anchor}><div class=head>{head}</div><div class=body>{body}</div></section>\n"


def markdown(text: str) -> str:
    """Sections of paragraphs, images, tables, and commands indented by four spaces."""
    html = ""
    for level, name, remark, text in HEADING.findall(re.sub(r"<!--.*?-->\n", "", text)):
        tag, body = f"h{len(level)}", ""
        for block in filter(None, re.split(r"\n\n+", text.strip("\n"))):
            if block.startswith("    "):
                body += f"<pre>{escape(re.sub('(?m)^    ', '', block))}</pre>"
            elif block.startswith("|"):
                head, *rows = ("<td>".join(map(prose, row)) for row in table(block))
                head, rows = head.replace("td>", "th>"), "<tr><td>".join(rows)
                body += f"<table><thead><tr><th>{head}<tbody><tr><td>{rows}</table>"
            else:
                body += f"<p class=p>{prose(' '.join(block.splitlines()))}</p>"
        slug = re.sub("[^a-z0-9 -]", "", name.lower()).replace(" ", "-")
        html += section(f"<{tag}>{prose(name)}</{tag}><p>{remark}</p>", body, f" id={slug}")
    return html


def write(site: Path, name: str, title: str, body: str, toc: str = "") -> None:
    nav = " ".join(f"<a href={x}.html{' aria-current=page' * (x == name)}>{x}</a>" for x in NAMES)
    (site / f"{name}.html").write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        "<link rel=stylesheet href=style.css><a class=skip href=#main>Skip to the text</a>\n"
        f"<header><nav aria-label=Site>{nav}</nav></header>{toc}<main id=main>{body}</main>\n"
    )


def write_source(site: Path, file: Source) -> None:
    """The header as text; below it the code with its cards. A test's page is the code only."""
    title, _, cited = file.title.rstrip(".").partition("; ")
    head = f"<p>{file.name}.py\n{len(file.raw)} lines, <a href={file.name}.py>copy this file</a>"
    main = section(head, f"<h1>{prose(title)}</h1><p class=cite>{escape(cited)}</p>")
    toc = "<nav class=toc aria-label='This page'>"
    listing = "<div class=part><details><summary>the header, typeset above</summary>"
    for heading, items in file.sections.items() if file.name in SCRIPTS else ():
        name, rest = re.match(r"([^\[,;:]+)[,;: ]*(.*)", heading).groups()
        slug, body, rest = name.split()[0].lower(), "", prose(rest)
        for item in items:
            page = "equations.html" * (item.kind == "eq" and item.key not in file.labels)
            target = item.key if item.kind == "eq" else f"{item.kind}-{item.key}"
            anchor = f" id={target}" * (item.kind == "impl")
            href = f"{page}#{target}" * bool(item.key)
            body += entry(item, href, prose(item.remark), anchor)
        if slug == "changed":
            rest = f"<a href={LESSONS[file.name][0]}-{file.name}.html>line by line</a>"
        main += section(f"<h2>{prose(name)}</h2><p>{rest}</p>", f"<ul>{body}</ul>", f" id={slug}")
        toc += f"<a href=#{slug}>{name}</a> "
    for n, line in enumerate(file.raw, 1):
        if ruler := re.match("# ── (.+?)(?:: (the same .+?))? ─", line):
            toc += f"<a href=#code-{n}>{ruler[1]}</a> "
            listing += f"</div><div class=part><h3 id=code-{n}>{ruler[1]}</h3>"
            listing += f"<details><summary>{ruler[2]}</summary>" * bool(ruler[2])
        listing += file.line(n, card=file.name in SCRIPTS)
        if n == file.end or n == len(file.raw) and listing.count("<details") > 1:
            listing += "</details>"
    code = f"<section id=code><h2>Code</h2><div class=src>{listing}</div></div></section>"
    write(site, file.name, title, main + code, toc + "</nav>")
    shutil.copy(file.path, site)


def write_lesson(site: Path, a: Source, b: Source, what: str) -> None:
    """What changes from a to b: in words, in the equations, and line by line, by function."""
    html, same, equations = "", "", ""
    for name in sorted(a.parts | b.parts, key=lambda x: (b.parts.get(x) or a.parts[x]).start):
        old, new = (x.parts.get(name, range(0)) for x in (a, b))
        texts = [[x.raw[n - 1] for n in lines] for x, lines in ((a, old), (b, new))]
        if texts[0] == texts[1]:
            same += f"<a href={b.name}.html#L{new.start}>{name}</a> "
        elif old and new or (a.name, b.name) != ("ppo", "rlhf"):  # whose subjects are not the same
            html += f"<div class=part><h3>{name}</h3>"
            for tag, i, j, k, m in difflib.SequenceMatcher(None, *texts, False).get_opcodes():
                if tag == "equal":
                    html += f"<p class=gap>{m - k} line{'s' * (m - k > 1)} the same</p>"
                else:
                    html += "".join(f"<del>{a.line(n, False, False)}</del>" for n in old[i:j])
                    html += "".join(f"<ins>{b.line(n, False)}</ins>" for n in new[k:m])
            html += "</div>"
    head, title = "", f"{a.name} → {b.name}"
    for tag, one, other in (("del", a, b), ("ins", b, a)):
        lines = f"{html.count(f'<{tag}>')} lines of <a href={one.name}.html>{one.name}</a>"
        head += f"<p><{tag}>{lines}</{tag}></p>"
        for item in one.items.values():
            if item.kind == "eq" and item.text not in [x.text for x in other.items.values()]:
                href, item = f"equations.html#{item.key}", item._replace(kind=f"eq {tag}")
                equations += entry(item, href, prose(item.remark))
    main = section(head, f"<h1>{title}</h1><p class=lead>{prose(what)}</p>")
    main += section("<h2>Equations</h2><p>of only one of the two</p>", f"<ul>{equations}</ul>")
    main += section("<h2>Same text</h2>", f"<code>{same}</code>")
    main += f"<section id=code><h2>Code</h2><div class='src diff'>{html}</div></section>"
    write(site, f"{a.name}-{b.name}", title, main)


def write_equations(site: Path, scripts: dict[str, Source]) -> None:
    html = "<th>label<th>equation<th>what its tests compare with<th>in the code of<tbody>"
    for label, (names, text, _, _, told) in EQUATIONS.items():
        places = [(x.name, n) for x in scripts.values() for n in x.labels.get(label, [])]
        code = " ".join(f"<a href={name}.html#L{n}>{name}:{n}</a>" for name, n in places)
        synonyms = names.removeprefix(label).strip(" ()")
        synonyms = re.sub(r"[A-Z]+\d*-[\w.]+", r"<span class=nw>\g<0></span>", synonyms)
        html += f"<tr id={label}><th scope=row>{label}<small>{synonyms}</small>"
        html += f"<td>{prose(text, True)}<td>{compared(label)}"
        html += f"<td class=more>{code or told and f'told in {told}'}\n"
    main = markdown(INTRODUCTION)
    write(site, "equations", "Equations", f"{main}<table><thead><tr>{html}</table>")


def write_index(site: Path, scripts: dict[str, Source]) -> None:
    """The reading order as a map: of each script what is new, and what it reaches."""
    readme, html = TEXTS["README.md"], ""
    starts = [before for before, _ in LESSONS.values()]
    for name, script in scripts.items():
        idea = script.sections["Idea"][0].text.partition(". ")[0] + "."
        before, what = LESSONS.get(name, ("", idea))
        html += "</ol><ol class=map>" * (not before and bool(html))
        html += "<li class=leaf>" if starts.count(before) > 1 and name not in starts else "<li>"
        html += f"<h2><a href={name}.html>{name}</a></h2><div>{prose(script.title.split(';')[0])}"
        html += f"<br>{prose(what)}"
        html += f" <a href={before}-{name}.html>line by line</a>" * bool(before)
        html += f"<small>{prose(script.sections['Run'][-1].text.rpartition('`')[2])}</small></div>"
    lead = readme.split("\n\n")[1].partition(" PPO")[0]
    main = section("", f"<h1>Policy gradients</h1><p class=lead>{lead}</p>")
    ppo = scripts["ppo"]
    code = "".join(ppo.line(n, False) for n in ppo.parts["clipped_surrogate"])
    main += f"<section><div class=src>{code}</div></section><ol class=map>{html}</ol>"
    main += "".join(map(prose, re.findall(r"!\[.+?\]\(benchmarks/.+?\)", readme)))
    write(site, "index", "Policy gradients", main)


def build(site: Path) -> None:
    site.mkdir(parents=True, exist_ok=True)
    figures = [*ROOT.glob("benchmarks/results/**/*.[gps]??"), *ROOT.glob("docs/numbers/*.svg")]
    for path in [ROOT / "docs/style.css", *figures]:
        shutil.copy(path, site)
    scripts = {name: Source(ROOT / f"{name}.py") for name in SCRIPTS}
    tests = [Source(path) for path in sorted((ROOT / "tests").glob("test_*.py"))]
    for test in tests:
        for name, docstring in test.docstrings.items():
            labels = set(LABEL.findall(docstring)) if name.startswith("test_") else set()
            link = f"<a href={test.name}.html#L{test.parts[name].start}>{name[5:].replace('_', ' ')}</a>"
            for label in labels:
                TESTS.setdefault(label, set()).add((len(labels), link))
    for source in [*scripts.values(), *tests]:
        write_source(site, source)
    for after, (before, what) in LESSONS.items():
        write_lesson(site, scripts[before], scripts[after], what)
    write_equations(site, scripts)
    for path in PAGES:
        write(site, path.stem, path.stem.title(), markdown(path.read_text()))
    write_index(site, scripts)


if __name__ == "__main__":
    build(ROOT / "docs/site")
