"""Bundled weights: safetensors in half precision, each with its golden input and output beside it."""
