"""`unlearn-pl report`: what happened in runs, as one page to open in a browser, and as files for a paper."""

from collections.abc import Mapping
from pathlib import Path

from unlearn_pl.errors import InputError
from unlearn_pl.files import check_writable, write_text
from unlearn_pl.report.card import model_card
from unlearn_pl.report.content import Content, content_of
from unlearn_pl.report.page import page
from unlearn_pl.report.reading import read_runs
from unlearn_pl.report.table_files import write_tables

POSITIONAL = "runs"
"""The argument that stands without its flag."""
FORMATS = ("svg", "pdf", "png")


def report(
    runs: list[str],
    output: str = "report.html",
    mask_pii: bool = False,
    figures: str | None = None,
    tables: str | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write one page on one or several runs: verdict, tables, figures, the texts of every model side by side, settings
    and hashes, and what is missing. It is a single file that loads nothing from elsewhere. No model is loaded.

    Args:
        runs: Folders of runs: of a recipe, a fit, an evaluation, a merge or a search; or of several of them (a sweep).
        output: The HTML file.
        mask_pii: Replace e-mail addresses, dates, long numbers and street addresses in all texts.
        figures: Folder for every figure as SVG, PDF and PNG.
        tables: Folder for every table as Markdown, LaTeX and CSV.
        card: Markdown file for the card of the model that the first run is about, as the Hugging Face hub shows it.
        overwrite: Replace the output file if it exists; those of figures and tables are replaced without it.
    """
    check(output, {"figures": figures, "tables": tables}, card, overwrite)
    content = content_of(read_runs(runs), mask_pii)
    text = model_card(content.runs[0]) if card is not None else None
    write_text(output, page(content))
    if tables is not None:
        write_tables(content.tables, Path(tables))
    if figures is not None:
        write_figures(content, Path(figures))
    if card is not None and text:
        write_text(card, text)
    print(summary(content))
    if card is not None and not text:
        print("no model card: the first run has no evaluated model that it could be about")
    print("wrote " + ", ".join(place for place in (figures, tables, text and card, output) if place))


def check(output: str, folders: Mapping[str, str | None], card: str | None, overwrite: bool) -> None:
    """Raise InputError if something cannot be written, or would replace what is no report, before anything is read."""
    for name, file, endings in (("output", output, (".html", ".htm")), ("card", card, (".md",))):
        if file is None:
            continue
        path = Path(file)
        if path.is_dir():
            raise InputError(f"{file} is a folder; give a file", name)
        if path.exists() and not overwrite:
            raise InputError(f"{file} exists already; give another file, or overwrite to replace it", name)
        if path.exists() and path.suffix.lower() not in endings:  # a file of a run, perhaps
            raise InputError(f"{file} exists already, and overwrite replaces only {endings[0]} files", name)
        check_writable(path.parent, name)
    for name, folder in folders.items():
        if folder is not None:
            check_writable(folder, name)
    refuse_shared({"output": output, "card": card, **folders})


def refuse_shared(places: Mapping[str, str | None]) -> None:
    """Raise InputError if a file of the report is to be another's place; two folders may be one."""
    taken: dict[Path, str] = {}
    for name, place in places.items():
        if place is None:
            continue
        other = taken.setdefault(Path(place).resolve(), name)
        if other != name and other in ("output", "card"):
            raise InputError(f"{place} is given for {other} too", name)


def write_figures(content: Content, folder: Path) -> None:
    """Every figure in each of the ``FORMATS``."""
    from unlearn_pl.report.draw import draw  # matplotlib takes a second to load

    folder.mkdir(parents=True, exist_ok=True)
    for figure in content.figures:
        draw(figure, *(folder / f"{figure.key}.{ending}" for ending in FORMATS))


def summary(content: Content) -> str:
    """What the terminal shows of it: the answers on each run, and how much is missing."""
    lines = [f"{one.run}: {one.model}: {one.headline}" for one in content.verdicts]
    gone = sum(len(run.missing) for run in content.runs) + len(content.left_out)
    counted = f"{len(content.figures)} figures and {len(content.tables)} tables"
    return "\n".join(
        [*lines, f"{counted}; {gone} parts are missing, with the reasons on the page" if gone else counted]
    )
