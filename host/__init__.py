"""The one door to ComfyUI's internals: patchers, guiders, hooks, inference mode and files are touched here and nowhere else."""
