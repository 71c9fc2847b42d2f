"""Notebooks clean, package and README in sync with them: checked on a copy, so that checking changes nothing."""

import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def readme(root: Path) -> str:
    "README.md as it follows from nbs/index.ipynb."
    from nbconvert import MarkdownExporter
    import nbformat
    notebook = nbformat.read(root / "nbs/index.ipynb", as_version=4)
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    body = re.sub(r"\]\((images|guide|surveys)/", r"](nbs/\1/", body)
    return "<!-- made from nbs/index.ipynb by `make export`: edit that -->\n\n" + body.strip() + "\n"


def differing(before: Path, after: Path, pattern: str) -> list[str]:
    names = {path.relative_to(folder) for folder in (before, after) for path in folder.rglob(pattern) if ".ipynb_checkpoints" not in path.parts}
    return sorted(str(name) for name in names if not ((before / name).exists() and (after / name).exists() and filecmp.cmp(before / name, after / name, shallow=False)))


def main() -> int:
    if "--write-readme" in sys.argv:
        (ROOT / "README.md").write_text(readme(ROOT), encoding="utf-8")
        return 0
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ssr_nb"
        copy.mkdir()
        for name in ("nbs", "ssr_nb"): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.so"))
        for name in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT / name, copy / name)
        subprocess.run(["git", "init", "-q", str(copy)], check=True)
        for command in ("nbdev_clean", "nbdev_export"): subprocess.run([str(Path(sys.executable).with_name(command))], cwd=copy, check=True)
        problems += [f"nbs/{name} is not clean: run 'make export'" for name in differing(ROOT / "nbs", copy / "nbs", "*.ipynb")]
        problems += [f"ssr_nb/{name} is not what its notebook exports: run 'make export'" for name in differing(ROOT / "ssr_nb", copy / "ssr_nb", "*.py")]
    if (ROOT / "README.md").read_text(encoding="utf-8") != readme(ROOT): problems.append("README.md is not what nbs/index.ipynb says: run 'make export'")
    print("\n".join(problems) or "sources: notebooks clean, package and README in sync")
    return bool(problems)


if __name__ == "__main__": sys.exit(main())
