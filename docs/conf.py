"""The site: `make -C docs html` (CONTRIBUTING.md). Pages are Markdown; those with code cells are executed."""

import importlib.util
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # `selftrain` in a cell
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["COLUMNS"] = "100"
cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "selftrain_jax", "xla"))  # as runs do
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from selftrain_jax import __version__  # noqa: E402

project = "selftrain_jax"
copyright = "The selftrain_jax authors, Apache-2.0"  # noqa: A001
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "repository", "reference"]
exclude_patterns = ["_build", "_ext"]
smartquotes = False  # quotes and dots are often code here
html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_title = f"selftrain_jax {__version__}"
html_theme_options = {"navigation_with_keys": False}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # %magics in cells
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other projects; links between pages are all checked

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "literal"  # docstrings write `code` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_mock_imports = [name for name in ("lm_eval",) if importlib.util.find_spec(name) is None]
napoleon_use_ivar = True
napoleon_use_rtype = False
