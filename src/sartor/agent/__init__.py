"""`sartor agent`: lets other machines measure models on this one.

Needs numpy, ONNX Runtime and the standard library, so that it runs on a small board: `python -m sartor.agent`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sartor.errors import UserError

__all__ = ["main"]

MIN_TOKEN = 16  # characters


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `sartor agent --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sartor agent", description="Measure models on this machine for others, until interrupted.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than 127.0.0.1, the default, need --token-file")
    parser.add_argument("--port", type=int, default=8421, help="port to listen on; 0 takes a free one (default: 8421)")
    parser.add_argument("--token-file", type=Path, help="file with the token that clients must show; made, with a new token, if missing")
    parser.add_argument("--certificate", type=Path, help="PEM file of a certificate: the agent then speaks https")
    parser.add_argument("--key", type=Path, help="PEM file of the certificate's key, unless that is in the same file")
    parser.add_argument("--max-mb", type=float, default=512, help="largest upload in MB (default: 512)")
    parser.add_argument("--memory-mb", type=float, default=2048, help="memory that measuring may take in MB (default: 2048)")
    parser.add_argument("--seconds", type=float, default=120, help="longest time for one model, on top of the time measured (default: 120)")
    parser.add_argument("--folder", type=Path, help="where uploads lie while they are measured (default: the system's temporary folder)")
    parser.add_argument("--quiet", action="store_true", help="say nothing about requests")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted or terminated. Raises UserError for unfit arguments."""
    from sartor.agent.server import Agent, Settings
    from sartor.agent.worker import Limits

    given = _parser().parse_args(arguments)
    for name in ("max_mb", "memory_mb", "seconds"):
        if not 0 < getattr(given, name) < 1e7:
            raise UserError(f"{name.replace('_', '-')}: expected a number above 0, got {getattr(given, name):g}")
    limits = Limits(int(given.max_mb * 2**20), int(given.memory_mb * 2**20), given.seconds)
    token = _token(given.token_file) if given.token_file else None
    settings = Settings(given.host, given.port, token, given.certificate, given.key, limits, given.folder, given.quiet)
    agent = Agent(settings)
    with contextlib.suppress(ValueError):  # not in the main thread
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, lambda *_: threading.Thread(target=agent.stop, daemon=True).start())
    everywhere = " (all addresses of this machine: clients name it by one of them)" if given.host in ("0.0.0.0", "::") else ""
    print(f"sartor agent: listening on {agent.url}{everywhere}", flush=True)
    if token is not None and not given.certificate and given.host not in ("127.0.0.1", "::1", "localhost"):
        print("sartor agent: without --certificate the token and the models travel unencrypted", file=sys.stderr, flush=True)
    agent.serve()
    return 0


def _token(path: Path) -> str:
    """The token in a file; a missing file is made, readable by its owner alone. Raises UserError for a short or unreadable one."""
    try:
        with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            print(f"sartor agent: wrote a new token to {path}; give a copy to those who may measure here", flush=True)
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token-file: expected a file with a token at {path}, got: {error}") from None
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"token-file: expected at least {MIN_TOKEN} printable characters without spaces in {path}, got {len(token)}")
    return token
