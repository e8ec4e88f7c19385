"""A network as a model repository of Triton, and a real server that checks it.

`repository` writes two models: the network itself (tensor to tensor, on the onnxruntime or tensorrt backend), and one
in front of it that takes an image as it is and returns what `svd-hub predict` does (`service`, run by the Python backend
through `image_model`). `server` starts a tritonserver on this machine's own address, `checking` holds it against the
network. No module here is imported before it is asked for.
"""
