"""Decides payments until it is killed, and says which it has decided: `python decide_forever.py SETTINGS OWN ROUND [PAUSE]`."""

import os
import sys
import time
from itertools import count

# LightGBM would load these if it could, which takes seconds.
sys.modules |= dict.fromkeys(["sklearn", "pandas"])

import handbook  # noqa: E402

import mlpkg as ml  # noqa: E402
from mlpkg.decisions import Decider  # noqa: E402
from mlpkg.settings import Settings  # noqa: E402
from mlpkg.times import HOUR, instant, iso  # noqa: E402

settings, own, number, *pause = sys.argv[1:]
store = ml.open_store(Settings.model_validate_json(settings))
decider = Decider(handbook.fraud, store)
start = instant("2018-04-01")
for k in count():
    time.sleep(float(pause[0]) if pause else 0)
    at = start + (int(number) * 1_000_000 + k) * HOUR // 1_000
    for id in (f"{own}-{number}-{k}", f"both-{number}-{k}"):  # one that only this process decides, and one that all do
        payment = {"id": id, "time": iso(at), "customer_id": k % 50, "terminal_id": k % 20, "amount": float(k % 97)}
        decider.decide(payment, arrived=at)
        os.write(1, f"{id}\n".encode())
    if k % 10 == 0 and k:
        report = {"id": f"both-{number}-{k - 10}", "fraud": True}
        store.report(handbook.frauds, report, arrived=at)
        os.write(1, f"fraud {report['id']}\n".encode())
