"""The command as the tests of it call it."""

import pathlib
import subprocess
import sys

from selftrain_jax.cli import main as cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")


def run(*argv):
    """Exit code of the command, whether it returns or exits."""
    try:
        return cli.main([str(a) for a in argv])
    except SystemExit as e:
        return e.code


def loaded(*arguments):
    """The libraries that take long to import, of those that the command loads in a process of its own."""
    code = f"""if True:
        import sys
        from selftrain_jax.cli.main import main
        try:
            code = main({list(map(str, arguments))!r})
        except SystemExit as e:
            code = e.code
        slow = {{"jax", "flax", "optax", "transformers", "matplotlib", "scipy", "numpy", "urllib.request"}}
        print(code, *sorted(slow & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    code, *found = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    return found
