"""What a reader is given: the README, the pages behind it, and the API reference by pdoc."""

import re
from pathlib import Path
from typing import Any

import pytest

import polycom_jax as pc

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for folder in ("", ".github", "experiments", "experiments/results", "tpu_configs")
    for path in sorted((ROOT / folder).glob("**/*.md" if folder.endswith("results") else "*.md"))
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m pdoc -d google polycom_jax -o FOLDER` writes; any warning is an error."""
    pdoc = pytest.importorskip(
        "pdoc", reason="pdoc is not installed; pip install -c constraints.txt -e '.[docs]'"
    )
    folder = tmp_path_factory.mktemp("pages")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("polycom_jax", output_directory=folder)
    return folder


def test_every_public_name_has_its_entry(pages: Path):
    front = (pages / "polycom_jax.html").read_text()
    entries = set(re.findall(r'<section id="(\w+)">', front))
    linked = set(re.findall(r'href="polycom_jax/(\w+)\.html"', front))
    assert set(pc.__all__) <= entries | linked


@pytest.mark.parametrize(
    "formula",
    [
        "y = sum_i coeffs[i] * relu(x)^i",
        "y = coeffs[0] + sum_{i&gt;=1} coeffs[i] * norm(x^i)",
        "type2: y = a_0 + sum_{i&gt;=1} a_i rho(x^i)",
    ],
)
def test_formulas_are_shown_as_written(pages: Path, formula: str):
    shown = re.findall(r"<pre><code>(.*?)</code>", (pages / "polycom_jax.html").read_text(), re.S)
    assert any(formula in block for block in shown)


def test_links_lead_somewhere(pages: Path):
    """A formula such as f[i](x) would be taken for a link of Markdown."""
    for page in pages.rglob("*.html"):
        docstrings = re.findall(r'<div class="docstring">(.*?)</div>', page.read_text(), re.S)
        for link in re.findall(r'href="([^"#]+)', "".join(docstrings)):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_readme_stays_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 110


def test_the_readmes_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["y"].shape == names["x"].shape
    assert names["y"].dtype == names["x"].dtype


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_link_to_what_is_there(page: Path):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
