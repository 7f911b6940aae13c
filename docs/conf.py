from importlib.metadata import version as installed_version

project = "fastgru"
author = "the fastgru contributors"
copyright = "2026, the fastgru contributors"
version = release = installed_version("fastgru")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "numpydoc"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types in words
numpydoc_show_class_members = False  # autodoc lists them already
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
}

html_theme = "alabaster"
