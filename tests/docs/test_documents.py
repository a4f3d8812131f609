"""What the documents name is there: configs, variants, commands, links."""

import pathlib
import re
import shlex

import pytest

from mmjax import cli
from mmjax import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("README.md", "CHANGELOG.md", "configs/README.md", "docs/architecture.md",
         "docs/your_own_objective.md", "docs/pods.md", "docs/data.md", "docs/recipes.md")


def text(page):
  return (ROOT / page).read_text()


def anchor(heading):
  """The anchor that GitHub gives a heading."""
  return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", ["README.md", "configs/README.md"])
def test_every_shipped_config_is_in_the_table_with_its_variants(page):
  rows = [line for line in text(page).splitlines() if line.startswith("|")]
  for name in config_lib.shipped():
    row, = [line for line in rows if f"`{name}`" in line]
    variants = re.findall(r"`(\w+)`", row.split("|")[3])
    docstring = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]
    said = re.search(r"Variants: (.*?)\.\n", docstring, re.DOTALL).group(1)
    said = re.sub(r"\(.*?\)", "", said, flags=re.DOTALL).replace(",", " ").split()
    assert variants == said, name
    for variant in variants:
      config_lib.load(f"{name}:{variant}")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_anchors_resolve(page):
  for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
    if "://" in target:
      continue
    file, _, part = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists(), f"{page}: {target}"
    if part:
      headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
      assert part in map(anchor, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
  named = re.findall(r"`((?:mmjax|tests|launch|configs|docs)/[\w/.]+)`", text(page))
  named += re.findall(r"bash (\S+\.sh)", text(page))
  named += re.findall(r"-c (constraints/\S+)", text(page))
  for path in (path for path in named if "NAME" not in path):
    assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
  """Each `mmjax ...` line: verb, flags, and the paths it sets in a shipped config."""
  blocks = "\n".join(re.findall(r"```\n(.*?)```", text(page), re.DOTALL))
  for line in re.findall(r"^mmjax ([^#\n]*)", blocks, re.MULTILINE):
    words = shlex.split(line.replace("...", "--config=contrastive/siglip --workdir=x"))
    args, overrides = cli.parse(words)
    if getattr(args, "config", None) and not args.config.startswith("my_"):
      config_lib.load(args.config, overrides)
