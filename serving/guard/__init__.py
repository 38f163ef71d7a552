"""A small HTTP server that judges answers of models: the second step of an InferenceGraph.

    python -m serving.guard --guard bilstm [--threshold 0.5] [--port 8080]
"""
