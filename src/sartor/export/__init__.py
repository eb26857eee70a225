"""From a plain torch module to files that need no sartor: ONNX fp32, ONNX int8, Python source with safetensors."""

from __future__ import annotations
