"""Text under the node that runs, on the canvas."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from comfy_execution.utils import get_executing_context

_warning: ContextVar[str] = ContextVar("warning", default="")


@contextmanager
def warned(text: str) -> Iterator[None]:
    """Log a warning, and say it under the node as well, above what the node says of itself within."""
    logging.warning(text)
    before = _warning.set(text)
    try:
        remark("")
        yield
    finally:
        _warning.reset(before)


def remark(text: str) -> None:
    """Say something under the node that runs now; nothing where no server runs it."""
    text = "\n".join(filter(None, (_warning.get(), text)))
    running = get_executing_context()
    if running is None:
        return
    from server import PromptServer  # there where a node runs

    PromptServer.instance.send_progress_text(text, running.node_id, PromptServer.instance.client_id)
