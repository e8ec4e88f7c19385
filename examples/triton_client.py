"""Sends a CT whole to a Triton server and writes the mask that comes back.

svd-hub export unet3d18w16_ctorgans --to triton --out models && tritonserver --model-repository models
python examples/triton_client.py ct.nii.gz mask.nii.gz [localhost:8000]
"""

import sys

import numpy as np
import SimpleITK
import tritonclient.http as triton

if not 3 <= len(sys.argv) <= 4:
    sys.exit(__doc__)
ct = SimpleITK.ReadImage(sys.argv[1])
arrays = {"volume": SimpleITK.GetArrayFromImage(ct).astype(np.int16), "spacing": np.array(ct.GetSpacing()[::-1])}
arrays |= {"direction": np.array(ct.GetDirection()), "origin": np.array(ct.GetOrigin())}
inputs = [triton.InferInput(name, a.shape, "INT16" if name == "volume" else "FP64") for name, a in arrays.items()]
for tensor, array in zip(inputs, arrays.values(), strict=True):
    tensor.set_data_from_numpy(array)
address = sys.argv[3] if len(sys.argv) > 3 else "localhost:8000"
answer = triton.InferenceServerClient(address, network_timeout=600.0).infer("unet3d18w16_ctorgans", inputs)
mask = SimpleITK.GetImageFromArray(answer.as_numpy("mask"))
mask.CopyInformation(ct)
SimpleITK.WriteImage(mask, sys.argv[2])
