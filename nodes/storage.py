from __future__ import annotations

from comfy_api.latest import io

from ..baret_ops.storage import load_inversion, save_inversion
from ..host import files
from . import inputs
from .common import CATEGORY, SEARCH_ALIASES, checked


class BaretSaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretSaveInversion",
            display_name="Save Inversion",
            category=CATEGORY,
            description="Writes an inversion to one .safetensors file in the output folder, "
            "so that it need not be computed again.",
            search_aliases=SEARCH_ALIASES,
            is_output_node=True,
            inputs=[
                inputs.trajectory(),
                inputs.embeddings(),
                io.String.Input(
                    "filename_prefix",
                    default="baret/inversion",
                    tooltip="Folder and name under the output folder; a number is added.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, trajectory, embeddings, filename_prefix) -> io.NodeOutput:
        shown = files.write_new(filename_prefix, lambda path: save_inversion(path, trajectory, embeddings))
        name = f"{shown['subfolder']}/{shown['filename']}".lstrip("/")
        return io.NodeOutput(ui={"files": [shown], "text": (name,)})


class BaretLoadInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BaretLoadInversion",
            display_name="Load Inversion",
            category=CATEGORY,
            description="Reads an inversion that Save Inversion wrote, from the input or the output folder.",
            search_aliases=SEARCH_ALIASES,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files.list_files(),
                    tooltip="A .safetensors file of the input folder, or of the output folder (marked so).",
                )
            ],
            outputs=[
                inputs.trajectory_output(),
                inputs.EmbeddingsWire.Output(
                    "embeddings", tooltip="The tuned text of every step, with the transition it was saved with."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        """Takes the place of the host's check against its list, which does not know a file that was saved just now.

        None stands for a name that another node will give.
        """
        if file is None:
            return True
        try:
            files.find_file(file)
        except ValueError as error:
            return f"Load Inversion: {error}"
        return True

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return files.fingerprint(file)

    @classmethod
    @checked
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(*load_inversion(files.find_file(file)))
