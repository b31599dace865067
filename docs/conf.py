"""How is the site of the documents built? By Sphinx, from the Markdown files of the whole repository: `make docs`.

Files stay where they are read on their own, so that their links lead to the same places in both.
"""

project = "polygym"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "*.md", "envs/README.md", "sft/README.md", "experiments/**.md", "benchmarks/README.md"]
exclude_patterns = [".*", "build", "runs", "models", "**/node_modules"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "polygym"
