"""ComfyUI-BARET: edit a real picture by words alone (arXiv 2312.05482). The host's entry point."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .nodes import NODES

WEB_DIRECTORY = "./web"


class BaretExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return BaretExtension()
