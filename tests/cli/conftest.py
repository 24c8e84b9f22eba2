import textwrap

import pytest


@pytest.fixture
def config(tmp_path):
    """Writes a config file with this body of get_config and returns its path."""

    def write(body, name="config.py", arguments=""):
        text = f"from ml_collections import ConfigDict\ndef get_config({arguments}):\n" + textwrap.indent(body, "    ")
        (tmp_path / name).write_text(text + "\n")
        return str(tmp_path / name)

    return write
