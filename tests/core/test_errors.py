"""What errors and logs may show of what comes from outside."""

import pytest

from selftrain_jax.core.errors import told

ADDRESSES = {
    "http://me:secret@host/x": "http://***@host/x",
    "proxy socks5://me:se@cret@host:1": "proxy socks5://***@host:1",
    "gs:/me:secret@bucket/x": "gs:/***@bucket/x",
    "https://host/name@revision": "https://host/name@revision",
    "https://h/f?token=hf_abc&rev=1 failed": "https://h/f?token=***&rev=1 failed",
    "'https://h/f?a=1&X-Amz-Signature=00ff'": "'https://h/f?a=1&X-Amz-Signature=***'",
    "https://h/f?tokenizer=gpt2": "https://h/f?tokenizer=gpt2",
}


@pytest.mark.parametrize("text, shown", ADDRESSES.items())
def test_user_password_and_keys_of_an_address_are_left_out(text, shown):
    assert told(text) == shown
