"""MLflow's scoring server with the model as its LightGBM flavour saves it: one worker."""

import os
import subprocess
import sys
import tempfile

import lightgbm as lgb
import mlflow.lightgbm

os.environ["PATH"] = (
    f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # where it looks for its server
)

with tempfile.TemporaryDirectory() as folder:
    mlflow.lightgbm.save_model(lgb.Booster(model_file=os.environ["MODEL"]), f"{folder}/model")
    command = [
        "models",
        "serve",
        "-m",
        f"{folder}/model",
        "--env-manager",
        "local",
        "-p",
        sys.argv[1],
        "-h",
        "127.0.0.1",
    ]
    subprocess.run([sys.executable, "-m", "mlflow", *command, "--workers", "1"], check=True)
