"""The project itself: environment, packaging, notebooks."""

import ast
import configparser
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOTEBOOKS = [path for pattern in ("[0-4]*.ipynb", "service/[0-9]*.ipynb", "[5-9]*.ipynb") for path in sorted((ROOT / "nbs").glob(pattern))]  # in the order of imports


def module_of(notebook: Path) -> str:
    "The module that a notebook exports, without `ssr_nb.`."
    return ".".join([*notebook.parent.relative_to(ROOT / "nbs").parts, notebook.stem.split("_", 1)[1]])


def file_of(module: str) -> Path: return ROOT / "ssr_nb" / f"{module.replace('.', '/')}.py"


def test_environment_yml_is_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": ["-e .[dev]"]} and f"python{PROJECT['project']['requires-python']}" in environment["dependencies"]


def test_everything_the_user_named_is_in_the_research_environment():
    named = ["jupyterlab", "papermill", "nbdev", "openai", "google-generativeai", "numpy", "pandas", "seaborn", "duckdb", "joblib", "pytest"]
    lock = (ROOT / "requirements/dev.lock").read_text()
    assert all(re.search(rf"^{name}==", lock, re.MULTILINE) for name in named)
    for name in ("dev", "base"):
        lock = (ROOT / f"requirements/{name}.lock").read_text()
        assert "--hash=sha256:" in lock and "://" not in lock


def test_settings_ini_drives_nbdev():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    assert f"__version__ = \"{settings['DEFAULT']['version']}\"" in (ROOT / "ssr_nb/__init__.py").read_text()


def test_cleaning_keeps_the_tag_that_papermill_needs(tmp_path):
    import shutil
    import subprocess
    import sys
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "nbs/surveys/concept_test.ipynb", tmp_path / "nbs")
    subprocess.run([str(Path(sys.executable).with_name("nbdev_clean"))], cwd=tmp_path, check=True)
    assert any("parameters" in cell.metadata.get("tags", []) for cell in nbformat.read(tmp_path / "nbs/concept_test.ipynb", as_version=4).cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=module_of)
def test_library_notebooks_are_literature(path):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n\n> .+", first.source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.source.startswith("#| default_exp") for cell in code) and sum(cell.cell_type == "markdown" for cell in notebook.cells) >= 2
    assert len(file_of(module_of(path)).read_text().splitlines()) <= 400


def imports(module: str) -> set[str]:
    "The modules of the package that a module imports, at its top or inside."
    found = set()
    for node in ast.walk(ast.parse(file_of(module).read_text())):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "ssr_nb." + module
            base = ".".join([*package.split(".")[:-node.level], *filter(None, [node.module])]) if node.level else node.module
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else: continue
        found |= {name.removeprefix("ssr_nb.") for name in names if name.startswith("ssr_nb.")}
    return found


def test_modules_import_downward_only():
    order = {module_of(path): number for number, path in enumerate(NOTEBOOKS)}
    for module, place in order.items():
        upward = {other for other in imports(module) if order.get(other, -1) >= place}
        assert not upward, f"{module} imports {upward}"


def test_no_address_of_an_index_or_a_path_of_a_machine_is_committed():
    for path in [*ROOT.glob("*.*"), *(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "tests").rglob("*.py")]:
        if path.is_file(): assert not re.search(r"/home/[a-z]+/|index-url" + " ", path.read_text(errors="ignore")), path
