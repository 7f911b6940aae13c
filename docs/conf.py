import fastgru

project = "fastgru"
author = "the fastgru contributors"
copyright = "2026, the fastgru contributors"
version = release = fastgru.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types in words
numpydoc_show_class_members = False  # autodoc lists them already

html_theme = "alabaster"
