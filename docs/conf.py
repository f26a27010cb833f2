"""Settings of Sphinx, which `.ci/build_docs.py` runs on the pages, notebooks and modules that it gathers under build/."""

import importlib.metadata

project = "mlpkg"
author = "the authors of mlpkg"
version = release = importlib.metadata.version("mlpkg")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
suppress_warnings = [
    "config.cache",
    "ref.python",  # a name that two modules define; `.ci/figures.py` counts these
]

# Notebooks are shown with the outputs that they hold; `make test` runs them.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # it would be loaded from another host
nb_merge_streams = True
myst_heading_anchors = 4

# Docstrings are NumPy style. A name between single backticks is code.
default_role = "code"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "model_config"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"mlpkg {version}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
