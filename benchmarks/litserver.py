"""LitServe in its documented form around `inference.Predictor`: python benchmarks/litserver.py MODEL PORT.

A file of its own, because its worker is a new process that imports the class by name.
"""

from __future__ import annotations

import sys

import litserve

from patholib.deploy.inference import Predictor


class Classify(litserve.LitAPI):
    def __init__(self, model: str):
        super().__init__(api_path="/predict")
        self.path = model

    def setup(self, device):
        self.predictor = Predictor(self.path)

    def decode_request(self, request):
        return self.predictor.read(request["file"].file.read())

    def predict(self, pixels):
        return self.predictor.answer(pixels)

    def encode_response(self, output):
        return output.to_json()


if __name__ == "__main__":
    server = litserve.LitServer(Classify(sys.argv[1]), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="error", generate_client_file=False)
