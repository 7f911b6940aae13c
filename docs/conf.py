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
# What api.md shows has its parameters and what it returns; "all" is less those named after it:
numpydoc_validation_checks = {
    "all",
    *("ES01", "EX01", "SA01"),  # an extended summary, examples and "see also" where they help
    *("PR07", "RT03"),  # a name and a type may say it all
    "YD01",  # the context managers yield nothing
}
numpydoc_validation_overrides = {"RT01": {"^(Return|Give) "}}  # the first line says what
numpydoc_validation_exclude = {
    # Keras' protocol, in Keras' words,
    r"\.(build|get_initial_state|compute_\w+|get_config|from_config|serialize|deserialize)$",
    r"\.Activation\.(with_params|vjp)$",  # and what says all in one line
}

html_theme = "alabaster"
