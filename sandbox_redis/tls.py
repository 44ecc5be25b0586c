"""TLS as those meet it who set it up: what is wrong with the files that they name, and why a handshake came to nothing.
Nothing is connected here; redis-py does that, with the same arguments.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sandbox_redis.errors import InvalidArgumentError

FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_BROKEN_OFF: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_NOISE: Final = re.compile(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$")  # of OpenSSL's and Python's source


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse files that cannot be used. Else each attempt to connect would fail, without a word of which file it is; or
    it would ask on the terminal for the password of a key.

    Raises:
        InvalidArgumentError: names the argument and the file.
    """
    ca, certificate, key = (arguments.get(name) for name in FILES)
    for name in FILES:
        if (path := arguments.get(name)) is not None:
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise InvalidArgumentError(name, str(path), f"it cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise InvalidArgumentError("ssl_ca_certs", str(ca), "a PEM file with certificates is needed") from None
    if certificate is None:
        if key is not None:
            raise InvalidArgumentError("ssl_keyfile", str(key), "ssl_certfile, with its certificate, is needed as well")
        return
    password = arguments.get("ssl_password") or ""
    try:
        context.load_cert_chain(certificate, key, lambda: password)
    except (ssl.SSLError, ValueError) as error:
        rule = "a certificate, its key (here or in ssl_keyfile) and the key's password (ssl_password) are needed"
        raise InvalidArgumentError("ssl_certfile", str(certificate), f"{rule}: {_words(error)}") from None


def refusal(error: BaseException) -> str | None:
    """Why no connection can be had over TLS, however often it is tried; None when that is not the cause."""
    failed = next((each for each in _chain(error) if isinstance(each, ssl.SSLError)), None)
    if failed is None or isinstance(failed, _BROKEN_OFF):
        return None
    if isinstance(failed, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {failed.verify_message.rstrip('.')}"
    return f"TLS failed: {_words(failed)}"


def broke_off(error: BaseException) -> bool:
    """Whether the other side went away in the midst of TLS. A server does so, too, that does not accept a client's
    certificate, when it is written to before its word of that is read."""
    return any(isinstance(each, _BROKEN_OFF) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: Exception) -> str:
    text = error.args[-1] if error.args else error
    return _NOISE.sub("", _NOISE.sub("", str(text)))
