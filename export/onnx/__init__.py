"""A bundle to ONNX graphs, to their check in ONNX Runtime, and to TensorRT engines.

    stages.py: what becomes a graph; lm.py, codec.py on ops.py: its formulas; trace.py, weights.py: the files
    writer.py: export-onnx; verify.py on cases.py, graph.py: verify-onnx; trt.py: build-engine
"""
