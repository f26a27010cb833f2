"""A service whose every text is hostile: ids, reasons, names, descriptions, actions, metrics."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from bank import put_live
from paths import SUPPORT
from serving import environment, free_port

import mlpkg as ml
from mlpkg import models
from mlpkg.models import shadow
from mlpkg.schema import Rejected
from mlpkg.serve.app import Application
from mlpkg.settings import Settings
from mlpkg.times import iso, now

SCRIPT = "</style></script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
ATTRIBUTE = "\" autofocus onfocus=\"document.title='run'\" ' onmouseover='document.title=1"
TEMPLATE = "{{ 7 * 191 }}{% for x in y %}"
BIDI = "pay \u202e\u2066 001 ok\u200b\u2069"
ZERO = "zero\0\x1b[31mbyte"
ZALGO = "Z" + "\u0334\u0301" * 200
LONG = "W" * 1_000_000
HOSTILE = (SCRIPT, ATTRIBUTE, TEMPLATE, BIDI, ZERO, ZALGO, LONG, "\ud800 alone", "عربي 123", "😀" * 90)


class Purchase(ml.Event):
    __doc__ = f"{SCRIPT} {BIDI} {TEMPLATE}"

    buyer: str
    price: ml.Money


purchases = ml.Source("purchases", Purchase, owner=f"{ATTRIBUTE}{ZALGO}", allowed_lateness="1d")


def policy(score: float, event: Any) -> str:
    """Return what the buyer is called, which no policy should do."""
    return event.buyer


def give_up(event: Any) -> str:
    """Return what the buyer is called."""
    return event.buyer


features = ml.FeatureSet("hostile", on=purchases, price=ml.field("price"))
shop = ml.UseCase("hostile", features, policy=policy, fallback=give_up)


def make_app() -> Application:
    """The application on the state that the environment names."""
    return Application(shop, Settings.load())


def purchase(id: str, buyer: str = "ann") -> dict[str, Any]:
    """A purchase that is made just now."""
    return {"id": id, "time": iso(now()), "buyer": buyer, "price": 3.5}


def fill(state: Path) -> Path:
    """Store a model, a shadow and dead letters with hostile texts."""
    with closing(ml.open_store(Settings(state=state))) as store:
        first = put_live(shop, store, None, **{SCRIPT: 0.5, ATTRIBUTE: 1.0, "nan": float("nan"), LONG[:50_000]: 2.0})
        second = models.find(state, shop.name, put_live(shop, store))
        models.promote(store, models.find(state, shop.name, first), by=f"{SCRIPT}{BIDI}", why=f"{ATTRIBUTE}{LONG}")
        shadow(store, second, by=TEMPLATE, why=f"{SCRIPT}{ZALGO}")
        for text in HOSTILE:
            plain = text.encode("utf-8", "replace").decode()
            store.add_dead_letter("purchases", {"id": "x"}, Rejected(plain, plain, plain, event=plain))
    return state


@contextmanager
def serving_hostile(state: Path, *arguments: str, **more: str) -> Iterator[str]:
    """Run the service with uvicorn in a process of its own; its address."""
    port = free_port()
    env = environment(state, PYTHONPATH=str(SUPPORT), MLPKG_TRUST_LOOPBACK="true") | more
    command = [sys.executable, "-m", "uvicorn", "hostile_shop:make_app", "--factory", "--port", str(port), *arguments]
    with (state.parent / "uvicorn.log").open("ab") as log:
        process = subprocess.Popen([*command, "--no-access-log"], env=env, cwd=state.parent, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=9), timeout=60) as web:
            web.get(f"{address}/v1/ready")
        yield address
    finally:
        process.terminate()
        process.wait(30)
