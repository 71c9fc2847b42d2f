"""Published sites: every link, what is escaped, what is left out, what is never overwritten; and how they look in a browser."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT, command
from model_server import model_server
from ssr_nb import sites
from ssr_nb.core import InputError, SSRError
from ssr_nb.documentation import ParameterDoc, build_docs, symbols
from ssr_nb.publishing import headline_told, print_pdf, publish, without_folders
from ssr_nb.sites import Page, PageReader, check_links, guide_notebooks, link_pages, new_site, notebook_page, write_pages
from ssr_nb.store import Run

EXAMPLE = next((ROOT / "runs/example").glob("*/run.json")).parent
EVIL = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def copied(runs: Path, run_id: str, **changes) -> Path:
    "The example run under another id."
    folder = runs / run_id
    shutil.copytree(EXAMPLE, folder)
    manifest = json.loads((folder / "run.json").read_text()) | {"run_id": run_id} | changes
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Four runs: one of a concept with a wicked name, the example, one that failed, one saved by hand."
    folder = tmp_path_factory.mktemp("published") / "runs"
    concepts = folder.parent / "wicked concepts.csv"
    concepts.write_text(f'name,description\n"{EVIL}","A ""mug"" & <img src=x onerror=alert(2)> </script> -->"\nPlain,Nothing much\n')
    with model_server() as server:
        done = command("run", "concept_test", "-p", "llm_model", "stand-in", "-p", "cohort_size", "5", "-p", "samples", "1", "-p", "concepts", concepts,
                       env={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "test", "SSR_RUNS": str(folder)})
    assert done.returncode == 0, done.stderr
    copied(folder, "20260101-000000-concept_test-good", finished_at="2026-01-01T00:01:00+00:00")
    copied(folder, "20260102-000000-concept_test-bad", status="failed", error="concepts file '/secret/place/x.csv' does not exist")
    (copied(folder, "20260103-000000-survey-hand") / "notebook.ipynb").unlink()
    return folder


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory): return publish(runs, tmp_path_factory.mktemp("site") / "site", pdf=False, title="For a client", progress=False)


def rows_of(folder: Path) -> list:
    return json.loads("[" + (folder / "assets/search.js").read_text().removeprefix("ssrSearch([").removesuffix("]);\n") + "]")


def content(folder: Path) -> dict: return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_and_every_link_leads_somewhere(site):
    assert check_links(site.folder) == [] and len(site.reports) == 2 and not site.pdfs
    assert {f"guide/{path.stem}.html" for path in (ROOT / "nbs/guide").glob("*.ipynb")} | {"index.html"} < set(site.pages)
    for address in site.pages:
        page = (site.folder / address).read_text()
        assert page.count("<h1") == 1 and 'lang="en"' in page and page.index('class="skip"') < page.index("<header") and "Content-Security-Policy" in page
    index = (site.folder / "index.html").read_text()
    manifest = json.loads((EXAMPLE / "run.json").read_text())
    assert manifest["fingerprint"][:12] in index and "2026-01-01" in index and "gemma-3-270m" in index and "no evidence about consumers" in index
    assert f"First: {'Everwarm Mug'}, top-2 box" in index and site.index == site.folder / "index.html"


def test_names_of_concepts_are_text_everywhere(site):
    for address in site.pages:
        page = (site.folder / address).read_text()
        assert re.findall(r"<script[^>]*>", page) == [f'<script src="{"../" * address.count("/")}assets/site.js">'], address
        assert "<img src=x" not in page and "onerror=alert(2)>" not in page.replace("onerror=alert(2)&gt;", "")
    report = next(address for address in site.pages if site.reports[0] in address)
    assert "&lt;script&gt;alert(1)" in (site.folder / report).read_text() and any(EVIL in row[3] for row in rows_of(site.folder))


def test_no_folder_of_the_machine_is_published(site, runs):
    everything = b"".join(content(site.folder).values()).decode()
    assert str(runs.parent) not in everything and "/secret" not in everything and "wicked concepts.csv" in everything and "gemma-3-270m-q4_k_m.gguf" in everything


@pytest.mark.parametrize("given, told", [
    ("/a/b c/d.csv", "d.csv"), ("~/x/y.gguf", "y.gguf"), (r"C:\models\m.onnx", "m.onnx"), ("https://example.org/a/b", "https://example.org/a/b"), ("1/2 of them", "1/2 of them"),
    ("nbs/panels/us.csv", "nbs/panels/us.csv"), ("in '/a/b/c.csv', row 2", "in 'c.csv', row 2"), ({"a": ["/x/y/z"]}, {"a": ["z"]}), (3, 3), (None, None), ("either/or and/or", "either/or and/or"), ("$5 / month / head", "$5 / month / head"),
])
def test_paths_become_names(given, told):
    assert without_folders(given) == told


def test_runs_without_a_report_are_listed_with_their_reason(site):
    assert dict(site.left_out) == {"20260102-000000-concept_test-bad": "failed: concepts file 'x.csv' does not exist", "20260103-000000-survey-hand": "was saved by hand: only runs of a survey notebook have a report"}
    index = (site.folder / "index.html").read_text()
    assert all(run in index for run, _ in site.left_out) and "does not exist" in index and "without a report: 20260102" in str(site)
    assert not any("bad" in page or "hand.html" in page for page in site.pages)


def test_the_search_knows_reports_and_guide(site):
    rows = rows_of(site.folder)
    found = [row for row in rows if "toothpaste" in row[3]]
    assert any(row[0].startswith("reports/") and row[0].endswith("#What-was-asked") for row in found)
    assert any(row[0].startswith("guide/first_survey.html") and "report, cell by cell" in row[3] for row in rows)
    readers = {address: PageReader((site.folder / address).read_text()) for address in site.pages}
    for address, *_ in rows:
        page, _, place = address.partition("#")
        assert page in readers and (not place or place in readers[page].ids or place.replace("%25", "%") in readers[page].ids or any(place == sites.quote(one) for one in readers[page].ids))


def test_the_same_runs_give_the_same_bytes(site, runs, tmp_path):
    again = publish(runs, tmp_path / "elsewhere", pdf=False, title="For a client", progress=False)
    assert content(again.folder) == content(site.folder)
    publish(runs, tmp_path / "elsewhere", pdf=False, title="For a client", progress=False)
    assert content(again.folder) == content(site.folder) and [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_chosen_runs_alone_and_without_the_guide(runs, tmp_path):
    one = publish(runs, tmp_path / "one", chosen=["20260101-000000-concept_test-good"], guide=False, pdf=False, progress=False)
    assert one.pages == ("index.html", "reports/20260101-000000-concept_test-good.html") and not one.left_out and EVIL not in "".join(row[3] for row in rows_of(one.folder))
    by_path = publish(tmp_path / "no such folder", tmp_path / "two", chosen=[EXAMPLE], guide=False, pdf=False, progress=False)
    assert by_path.reports == (EXAMPLE.name,)
    failed = publish(runs, tmp_path / "three", chosen=["20260102-000000-concept_test-bad"], guide=False, pdf=False, progress=False)
    assert not failed.reports and failed.left_out[0][0].endswith("-bad") and "No report is here yet" in failed.index.read_text()
    with pytest.raises(InputError, match="'nobody' is neither an id"): publish(runs, tmp_path / "four", chosen=["nobody"], pdf=False)
    with pytest.raises(InputError, match="give a list of runs"): publish(runs, tmp_path / "four", chosen="nobody", pdf=False)
    with pytest.raises(InputError, match="does not exist"): publish(tmp_path / "nowhere", tmp_path / "four", pdf=False)
    assert not (tmp_path / "four").exists()


def test_a_run_cannot_write_outside_the_site(tmp_path):
    folder = copied(tmp_path / "runs", "x")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("\"run_id\": \"x\"", "\"run_id\": \"../../x\""))
    with pytest.raises(InputError, match="no file name"): publish(tmp_path / "runs", tmp_path / "site", pdf=False, progress=False)


def test_a_broken_notebook_is_one_sentence_and_the_earlier_site_stays(tmp_path):
    copied(tmp_path / "runs", "good")
    site = publish(tmp_path / "runs", tmp_path / "site", guide=False, pdf=False, progress=False)
    before = content(site.folder)
    (copied(tmp_path / "runs", "torn") / "notebook.ipynb").write_text('{"cells": [')
    with pytest.raises(SSRError, match="notebook of run torn cannot be read"): publish(tmp_path / "runs", tmp_path / "site", guide=False, pdf=False, progress=False)
    assert content(site.folder) == before and {path.name for path in tmp_path.iterdir()} == {"runs", "site"}


def test_incomplete_runs_say_so(tmp_path):
    copied(tmp_path / "runs", "half", status="incomplete", warnings=["12 of 90 answers are missing."])
    site = publish(tmp_path / "runs", tmp_path / "site", guide=False, pdf=False, progress=False)
    index = site.index.read_text()
    assert "status incomplete" in index and "12 of 90 answers are missing." in index and "12 of 90" in (site.folder / "reports/half.html").read_text()


def test_headlines(tmp_path):
    assert headline_told(Run(EXAMPLE)).startswith("First: Everwarm Mug, top-2 box 43%") and headline_told(Run(EXAMPLE)).endswith("of 5")
    told = copied(tmp_path, "validation", headline=[{"text": "all", "Spearman": 0.8, "empty": None}])
    assert headline_told(Run(told)) == "text all, Spearman 0.8"


def blank(folder: Path) -> None: write_pages(folder, [Page("index.html", "A", "<h1>A</h1>", kind="index")], "A")


def test_what_is_not_a_site_is_never_overwritten(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("all my work")
    (tmp_path / "file").write_text("x")
    for name, told in (("thesis", "something else than a site"), ("file", "which is a file")):
        with pytest.raises(InputError, match=told), new_site(tmp_path / name): raise AssertionError
    (thesis / "site.json").write_text("[]")
    with pytest.raises(InputError, match="something else"), new_site(thesis): raise AssertionError
    with new_site(tmp_path / "site") as folder: blank(folder)
    (tmp_path / "site/CNAME").write_text("example.org")
    with pytest.raises(InputError, match="'CNAME' is not part of the site"), new_site(tmp_path / "site"): raise AssertionError
    (tmp_path / "site/CNAME").unlink()
    with pytest.raises(InputError, match="'late.txt'"), new_site(tmp_path / "site") as folder:
        blank(folder)
        (tmp_path / "site/late.txt").write_text("came while it was built")
    assert (thesis / "thesis.txt").read_text() == "all my work" and (tmp_path / "site/late.txt").exists() and (tmp_path / "site/index.html").exists()
    (tmp_path / "empty").mkdir()
    with new_site(tmp_path / "empty") as folder: blank(folder)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_site_replaces_another_only_whole(tmp_path):
    out = tmp_path / "deep/site"
    with new_site(out) as folder: blank(folder)
    before = content(out)
    with pytest.raises(KeyError), new_site(out) as folder:
        (folder / "index.html").write_text("half")
        raise KeyError
    with pytest.raises(SSRError, match="1 broken links, the first is index.html: 'gone.html' does not exist"), new_site(out) as folder: write_pages(folder, [Page("index.html", "A", '<a href="gone.html">x</a>', kind="index")], "A")
    assert content(out) == before
    with new_site(out) as folder:
        with pytest.raises(SSRError, match="being built by another process"), new_site(out): raise AssertionError
        blank(folder)
    out.rename(out.with_name(".site.earlier"))  # as a kill between the two renames leaves it
    with pytest.raises(KeyError), new_site(out): raise KeyError
    assert content(out) == before and [path.name for path in out.parent.iterdir()] == ["site"]


def test_links_are_checked_as_a_browser_reads_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.html").write_text('<p id="x y">ok</p><p id="%23z">ok</p>')
    good = '<a href="sub/b.html#x%20y">1</a><a href="sub/b.html#%23z">2</a><a href="https://arxiv.org/abs/1">3</a><a href="#">4</a><img src="data:image/png;base64,AA"><svg><use xlink:href="#here"/></svg><p id="here" style="fill: url(#here)">'
    bad = ['<a href="sub/">', '<a href="nope.html">', '<a href="sub/b.html#nope">', '<img src="https://example.org/a.png">', '<script src="//example.org/a.js"></script>', '<a href="/index.html">', '<a href="javascript:alert(1)">', '<a href="../outside.html">',
           '<link href="http://example.org/a.css">', '<p style="background: url(https://example.org/x)">', "<style>@import 'x.css';</style>", '<img srcset="https://example.org/a.png 2x">', '<a href="#nope">']
    (tmp_path / "a.html").write_text(good)
    assert check_links(tmp_path) == [], check_links(tmp_path)
    for one in bad:
        (tmp_path / "a.html").write_text(one)
        assert len(check_links(tmp_path)) == 1, one


def test_links_between_notebooks_become_links_between_pages(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)
        return path
    first = write("guide/a.ipynb", "# A\n\n> First.\n\nSee [b](../surveys/b.ipynb#What-it-cost), [the data](data.csv), [paper](https://arxiv.org/abs/1), [here](#A) and ![dot](dot.svg)\n\n## Same\n\n## Same")
    second = write("surveys/b.ipynb", "# B\n\n## What it cost\n\nBack to [A](../guide/a.ipynb).")
    (tmp_path / "guide/data.csv").write_text("x")
    (tmp_path / "guide/dot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    pages = {path: notebook_page(path, f"{path.parent.name}/{path.stem}.html", path.parent.name) for path in (first, second)}
    link_pages(pages, strict=True)
    one, two = pages.values()
    assert 'href="../surveys/b.html#What-it-cost"' in one.body and "the data" in one.body and "data.csv" not in one.body and 'src="data:image/svg+xml;base64,' in one.body
    assert 'href="../guide/a.html"' in two.body and (one.title, one.summary) == ("A", "First.") and PageReader(one.body).ids == ["A", "Same", "Same-2"]
    with new_site(tmp_path / "site") as folder: write_pages(folder, [Page("index.html", "I", "<h1>I</h1>", kind="index"), one, two], "T")
    with pytest.raises(SSRError, match="links to 'gone.ipynb', which does not exist"): link_pages({(third := write("guide/c.ipynb", "[x](gone.ipynb)")): notebook_page(third, "c.html", "")}, strict=True)


def test_the_guide_comes_in_the_order_in_which_it_is_read(tmp_path):
    for name in ("zebra", "limits", "first_survey", "apple", "the_method"): (tmp_path / f"{name}.ipynb").touch()
    assert [path.stem for path in guide_notebooks(tmp_path)] == ["first_survey", "the_method", "limits", "apple", "zebra"]


def test_names_are_documented_from_their_source():
    found = {one.name: one for one in symbols('''
LIMIT = 3  # as many as that
_hidden = 1
first, second = 1, 2

@dataclass
class Mug(Cup):
    "Keeps hot."
    size: int  # in ml
    lid: bool = True
    def fill(self, much: float = 1.0) -> None: "Fill it."
    @property
    def full(self) -> bool: "Whether."
    @staticmethod
    def make(clay): "Make one."
    def _secret(self): ...

async def pour(
    *mugs: Mug,  # all of them
    hot: bool = True,  # or not
    **more,
) -> list[Mug]:  # now full
    "Pour."

def one_line(a, b=2): return a  # not about b

def told(name: Annotated[str, typer.Option("--n", help="Whose.")] = "x"): ...
''')}
    assert list(found) == ["LIMIT", "first", "second", "Mug", "pour", "one_line", "told"] and found["LIMIT"].summary == "as many as that"
    assert found["Mug"].parameters == (ParameterDoc("size", "int", "", "in ml"), ParameterDoc("lid", "bool", "True", "")) and [one.name for one in found["Mug"].members] == ["Mug.fill", "Mug.full", "Mug.make"]
    assert [len(one.parameters) for one in found["Mug"].members] == [1, 0, 1]
    assert [one.comment for one in found["pour"].parameters] == ["all of them", "or not", ""] and found["pour"].returns == ("list[Mug]", "now full") and found["pour"].signature.startswith("async def pour(")
    assert [one.comment for one in found["one_line"].parameters] == ["", ""] and found["told"].parameters == (ParameterDoc("name", "str", "'x'", "Whose."),)


def test_pdf_says_which_browser_is_missing(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SSRError, match="none of chromium, .*google-chrome.* is on the path"): publish(runs, tmp_path / "site", pdf=True, progress=False)
    with pytest.raises(SSRError, match="install Chromium"): print_pdf(EXAMPLE / "report.html", tmp_path / "x.pdf")
    assert not publish(runs, tmp_path / "site", guide=False, progress=False).pdfs
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'no display' >&2\n")
    broken.chmod(0o755)
    with pytest.raises(SSRError, match="chromium could not print report.html: no display"): print_pdf(EXAMPLE / "report.html", tmp_path / "x.pdf")
    broken.write_text("not a program")
    with pytest.raises(SSRError, match="cannot be started"): print_pdf(EXAMPLE / "report.html", tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()


def test_documentation_of_a_small_library(tmp_path):
    nbs = tmp_path / "nbs"
    def write(name: str, *cells: str):
        path = nbs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = [nbformat.v4.new_code_cell(text[1:]) if text.startswith("!") else nbformat.v4.new_markdown_cell(text) for text in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    write("index.ipynb", "# cups\n\nStart with [a cup](guide/first_survey.ipynb), or read [the code](00_cups.ipynb#Why).")
    write("00_cups.ipynb", "# cups\n\n> All about cups.", "!#| default_exp cups", "## Why", "!#| export\ndef cups(\n    n: int,  # how many\n):\n    \"Make cups.\"\n    return n\n\nCUPS = 3", "!#| hide\nsecret()", "!cups(2)")
    write("guide/first_survey.ipynb", "# A cup", "!#| hide\nsecret()", "!print(1)")
    write("surveys/concept_test.ipynb", "# Test")
    site = build_docs(nbs, tmp_path / "docs", title="cups", progress=False)
    assert site.pages == ("index.html", "guide/first_survey.html", "surveys/concept_test.html", "symbols.html", "modules/cups.html") and check_links(site.folder) == []
    page = (site.folder / "modules/cups.html").read_text()
    assert "how many" in page and "secret" not in page and "default_exp" not in page and 'class="name" id="cups"' in page and 'id="CUPS"' in page and 'id="cups-2"' in page
    assert 'href="modules/cups.html#cups"' in (site.folder / "symbols.html").read_text()
    before = content(site.folder)
    assert content(build_docs(nbs, tmp_path / "docs", title="cups", progress=False).folder) == before
    with pytest.raises(InputError, match="no index.ipynb"): build_docs(tmp_path, tmp_path / "other")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None: pytest.skip("no chromium on this machine: run tests/system_packages.sh as root")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def opened(browser, path: Path, width: int = 1280, scheme: str = "light"):
    "A page in a tab of its own; whatever it complains about is collected."
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (page.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    return page


def seen(browser, path: Path) -> None:
    "A page at both widths and in both schemes: nothing sticks out, nothing comes from outside, axe finds nothing serious."
    from axe_playwright_python.sync_playwright import Axe
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page = opened(browser, path, width, scheme)
            assert page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth") <= 0, f"{path.name} is wider than {width}"
            assert not page.complaints and all(url.startswith(("file:", "data:")) for url in page.asked)
            found = [(one["id"], one["nodes"][0]["html"]) for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
            assert not found, (path.name, width, scheme, found)
            page.context.close()


@pytest.mark.system
@pytest.mark.parametrize("which", ["index.html", "reports", "guide/first_survey.html", "guide/the_method.html"])
def test_a_site_in_a_browser(site, browser, which):
    for address in site.pages if which == "reports" else [which]:
        if which != "reports" or address.startswith("reports/"): seen(browser, site.folder / address)


@pytest.mark.system
@pytest.mark.parametrize("width", [1280, 390])
def test_search_theme_and_keys(site, browser, width):
    page = opened(browser, site.folder / "guide/first_survey.html", width)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    page.keyboard.type("toothp fish")
    page.wait_for_selector(".found li a")
    assert "What was asked" in page.inner_text(".found") and page.inner_text(".found [role=status]").endswith(("place", "places")) and page.locator(".found mark").count() >= 2
    page.keyboard.press("Escape")
    assert page.locator(".found").is_hidden()
    page.fill("#query", "zzzznothing")
    page.wait_for_function("document.querySelector('.found [role=status]').textContent === 'Nothing found'")
    page.fill("#query", "onerror")
    page.wait_for_selector(".found li a")
    assert "onerror=alert(2)" in page.inner_text(".found")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/reports/**")
    page.click("button.theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark" and page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 27, 34)"
    assert not page.complaints
    if width == 390:
        assert page.locator(".menu a").first.is_hidden()
        page.click(".menu summary")
    assert page.locator(".menu a").first.is_visible()


@pytest.mark.system
def test_the_index_sorts_and_a_script_cannot_run(site, browser):
    page = opened(browser, site.index)
    first = page.inner_text(".reports tbody tr:first-child time")
    page.click("th:nth-child(2) button")
    assert page.get_attribute("th:nth-child(2)", "aria-sort") == "ascending" and page.inner_text(".reports tbody tr:last-child time") == first
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\"><img src=\"https://example.org/x.png\">')")
    page.wait_for_timeout(300)
    assert page.title() == "For a client" and any("Content Security Policy" in one for one in page.complaints)


@pytest.mark.system
def test_reports_on_paper_are_the_same_each_time(runs, tmp_path, browser, monkeypatch):
    made = [publish(runs, tmp_path / name, chosen=["20260101-000000-concept_test-good"], guide=False, pdf=True, progress=False) for name in ("a", "b")]
    [address] = made[0].pdfs
    paper = (made[0].folder / address).read_bytes()
    assert paper == (made[1].folder / address).read_bytes() and paper.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper)) >= 3
    assert str(tmp_path).encode() not in paper and b"file://" not in paper and 'href="reports/20260101-000000-concept_test-good.pdf"' in made[0].index.read_text()
    calls = tmp_path / "calls"
    counting = tmp_path / "bin/chromium"
    counting.parent.mkdir()
    counting.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {CHROMIUM} "$@"\n')
    counting.chmod(0o755)
    monkeypatch.setenv("PATH", str(counting.parent), prepend=":")
    again = publish(runs, tmp_path / "a", chosen=["20260101-000000-concept_test-good"], guide=False, pdf=True, progress=False)
    assert (again.folder / address).read_bytes() == paper and calls.read_text().splitlines() == ["--version"], "a report that did not change is not printed again"
    assert print_pdf(EXAMPLE / "report.html", tmp_path / "one.pdf") == tmp_path / "one.pdf" and (tmp_path / "one.pdf").stat().st_size > 20_000


@pytest.mark.system
def test_the_documentation_of_all_of_it(browser, tmp_path):
    site = build_docs(ROOT / "nbs", tmp_path / "docs", progress=False)
    assert check_links(site.folder) == []
    from ssr_nb._modidx import d as index
    ids = {address: set(PageReader((site.folder / address).read_text()).ids) for address in site.pages}
    for module, found in index["syms"].items():
        if module.startswith("ssr_nb.service.migrations"): continue  # Alembic's plain Python, which no notebook writes
        names = [long.removeprefix(module + ".") for long in found]
        assert {name for name in names if not any(part.startswith("_") for part in name.split("."))} <= ids[f"modules/{module.removeprefix('ssr_nb.')}.html"], module
    for address in ("index.html", "symbols.html", "modules/rating.html", "surveys/concept_test.html"): seen(browser, site.folder / address)


def test_the_wheel_carries_what_a_site_needs():
    text = (ROOT / "pyproject.toml").read_text()
    for folder, kinds in (("nbs/templates/site", {".j2", ".css", ".js", ".json"}), ("nbs/guide", {".ipynb"})):
        name = "ssr_nb.data." + folder.removeprefix("nbs/").replace("/", ".")
        assert f'"{name}"' in text and all(f'"*{kind}"' in text for kind in kinds), name
