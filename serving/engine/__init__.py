"""A text generation server with the gRPC interface of TGIS (`fmaas.GenerationService`) and continuous batching.

    python -m serving.engine --model-name FOLDER [--grpc-port 8033] [--port 3000]
"""
