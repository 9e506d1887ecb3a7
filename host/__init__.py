"""The one door to ComfyUI's internals.

Patchers, guiders, hooks, inference mode, memory and files are touched here and nowhere else.
"""
