"""A table of texts as Markdown, LaTeX or HTML. Whatever stands in a cell is shown as it is, in each of them."""

import html as markup
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


class Code(str):
    """Words to be set as code."""

    __slots__ = ()


class RunLink(str):
    """The folder of a run, which Markdown makes a link to its report."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are heads; notes stand below."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())


def markdown(table: Table) -> str:
    notes = [_markdown_text(note) for note in table.notes]
    return "\n\n".join([f"**{_markdown_text(table.title)}**", grid(table.heads, table.rows), *notes]) + "\n"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown without title and notes."""
    return "\n".join([_markdown_line(heads), "|" + "---|" * len(heads), *map(_markdown_line, rows)])


def latex(table: Table) -> str:
    """A tabular of the package booktabs."""
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in [table.heads, *table.rows]]
    body = [r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    caption = _latex_text(". ".join([table.title, *(note.rstrip(".") for note in table.notes)]) + ".")
    tabular = [rf"\begin{{tabular}}{{{'l' * len(table.heads)}}}", *body, r"\end{tabular}"]
    return "\n".join([r"\begin{table}", *tabular, rf"\caption{{{caption}}}", r"\end{table}"]) + "\n"


def html(table: Table) -> str:
    heads = "".join(f"<th>{_html_cell(head)}</th>" for head in table.heads)
    rows = "\n".join(f"<tr>{''.join(f'<td>{_html_cell(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<p>{markup.escape(note)}</p>\n" for note in table.notes)
    caption = f"<caption>{markup.escape(table.title)}</caption>"
    return f"<table>\n{caption}\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n{notes}"


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "html": html}


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown_cell, cells))} |"


def _markdown_cell(text: str) -> str:
    if isinstance(text, RunLink):
        return f"[{_markdown_text(text)}]({text}/report.html)"
    return _markdown_code(text) if isinstance(text, Code) else _markdown_text(text)


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_<>|~&]|\](?=[(\[]))", r"\\\1", text)


def _markdown_code(text: str) -> str:
    """Between more backticks than it holds; only the bar that parts cells is escaped inside."""
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}".replace("|", r"\|")


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "-": "-{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def _latex_text(text: str) -> str:
    """Every special sign by name, and no ligature of two hyphens."""
    return "".join("-" if sign == "-" and text[i + 1 : i + 2] != "-" else LATEX.get(sign, sign)
                   for i, sign in enumerate(text))  # fmt: skip


def _latex_cell(text: str) -> str:
    inside = _latex_text(text)
    # in front of a line of a tabular, [ would be the argument of the \\ before it
    inside = f"{{}}{inside}" if inside.startswith(("[", "*")) else inside
    return rf"\texttt{{{inside}}}" if isinstance(text, Code) else inside


def _html_cell(text: str) -> str:
    return f"<code>{markup.escape(text)}</code>" if isinstance(text, Code) else markup.escape(text)
