"""LitServe that only predicts: one API server, one worker, LightGBM's fast call."""

import os
import sys

import litserve as ls
from fast import Fast


class Predict(ls.LitAPI):
    """POST /predict takes features and answers a score."""

    def setup(self, device):
        """Load the model."""
        self.score = Fast(os.environ["MODEL"])

    def decode_request(self, request):
        """Return the features of a request."""
        return request["features"]

    def predict(self, features):
        """Return the score of one row."""
        return self.score(features)

    def encode_response(self, score):
        """Return the body of an answer."""
        return {"score": score}


if __name__ == "__main__":
    server = ls.LitServer(Predict(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="warning", generate_client_file=False
    )
