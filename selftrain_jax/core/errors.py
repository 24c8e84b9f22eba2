"""The exceptions whose message is all that a user needs: one line that says what is wrong, and the way out."""

import unicodedata


class InputError(ValueError):
    """A setting, file or argument that cannot be used.

    The message is one line: it names the setting or file, the value, what is allowed, and what to do instead.
    The command line prints it without a traceback and exits with code 2.
    """


class RunStopped(RuntimeError):
    """Work that could not go on: its numbers broke, its disk failed, or it was told to stop. What was saved is safe.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class PeerLost(RunStopped):
    """Another process of the job is gone. Nothing that waits for it may follow, not even an orderly exit of JAX."""


class InputWarning(UserWarning):
    """An input that can be used but is probably not what its user wants. The command line prints it as one line."""


def visible(text: str, keep: str = "", mask: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """`text` with `mask` for control characters (but those in `keep`) and halves of surrogate pairs: text from outside
    gives no orders to a terminal."""
    return "".join(mask if c not in keep and unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def one_line(error: Exception) -> str:
    """The message of an error from elsewhere, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
