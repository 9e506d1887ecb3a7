"""Text under the node that runs, on the canvas."""

from __future__ import annotations

from comfy_execution.utils import get_executing_context


def remark(text: str) -> None:
    """Say something under the node that runs now; nothing where no server runs it."""
    running = get_executing_context()
    if running is None:
        return
    from server import PromptServer  # there where a node runs

    PromptServer.instance.send_progress_text(text, running.node_id, PromptServer.instance.client_id)
