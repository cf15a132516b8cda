"""README.md: short, its links lead somewhere, and its example runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REPOSITORY = re.compile(
    r"https://(?:github\.com/sbi-jeffreys/sbi_jeffreys/(?:blob|tree)"
    r"|raw\.githubusercontent\.com/sbi-jeffreys/sbi_jeffreys)/main/([^\s)#]+)"
)


def marked_block(name):
    """Return the code below the comment `<!-- ci: name -->`."""
    (code,) = re.findall(
        rf"^<!-- ci: {name} -->\n```\w+\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    return code


def test_it_is_short():
    assert len(README.splitlines()) <= 130


def test_links_into_the_repository_exist():
    paths = REPOSITORY.findall(README)
    assert len(paths) > 5
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_all_links_are_absolute():
    """Relative ones are broken on the package index."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize("name", ["tutorial", "test"])
def test_commands_are_marked_for_ci(name):
    lines = marked_block(name).splitlines()
    assert lines[0] == "python3 -m venv .venv"
    assert all(line.startswith(".venv/bin/") for line in lines[1:])


def test_the_example_is_python_of_ten_lines():
    code = marked_block("example")
    compile(code, "README.md", "exec")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10


@pytest.mark.slow
def test_the_example_runs(capsys):
    names = {}
    exec(marked_block("example"), names)
    samples = names["posterior"].sample((500,), x=names["x"][:1])
    error = (samples.mean(0) - names["theta"][0]).abs()
    assert error.max() < 0.5  # five standard deviations of the noise
    assert "KL(p|q)" in capsys.readouterr().out
