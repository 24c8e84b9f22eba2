"""The exceptions whose message is all that a user needs: one line that says what is wrong, and the way out."""

import re

# Control characters, halves of surrogate pairs, and what turns the direction of the text after it.
_ORDERS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

_LOGIN = re.compile(r"(:/|//)[^/\s]+@")
# Of signed addresses of clouds and hubs, too: X-Amz-Signature, X-Goog-Credential, sig, access_token.
_KEYS = re.compile(r"([?&][\w-]*(?:token|key|secret|password|signature|credential|sig)=)[^&\s'\"]+", re.IGNORECASE)


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
    """`text` with `mask` for control characters (but those in `keep`) and what else could change how the text around it
    is shown: text from outside gives no orders to a terminal."""
    return _ORDERS.sub(lambda found: found[0] if found[0] in keep else mask, text)


def told(message: object, keep: str = "") -> str:
    """`message` as a terminal or a log may have it: `visible`, and without user, password and keys of an address in
    it."""
    return visible(_KEYS.sub(r"\1***", _LOGIN.sub(r"\1***@", str(message))), keep)


def one_line(error: Exception) -> str:
    """The message of an error from elsewhere, without its line breaks, as `told`."""
    return told(" ".join(str(error).split())) or type(error).__name__
