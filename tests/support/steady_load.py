"""Clients that want every decision, whatever happens to the servers: each sends the same again until it is acknowledged."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from serving import LOST, Client, payment

CUSTOMERS, TERMINALS = 50, 20
PATIENCE = 5.0  # seconds after which a client asks another worker
PAUSE = 0.02  # seconds between two requests of a client


@dataclass
class Heard:
    """What one client heard: for each attempt when it ended, and whether it was acknowledged."""

    attempts: list[tuple[float, bool]] = field(default_factory=list)

    def recovered(self, since: float) -> float | None:
        """When this client was served again: at its first answer after the last failure, None if that has not come."""
        later = [(ended, good) for ended, good in self.attempts if ended >= since]
        failures = [n for n, (_, good) in enumerate(later) if not good]
        good = later[failures[-1] + 1 :] if failures else later
        return good[0][0] if good else None


class SteadyLoad:
    """Clients on several workers: two decide on payments of their own, two on the same ones, and one reports frauds."""

    def __init__(self, ports: list[int]):
        self.ports, self._done = ports, threading.Event()
        self.sent: dict[str, dict[str, Any]] = {}  # payments by id
        self.decisions: dict[str, bytes] = {}  # the answers
        self.frauds: dict[str, int] = {}  # positions
        self.refused: Counter[int] = Counter()  # by status; 0 if there was no answer
        self.contradictions: list[str] = []  # ids for which two callers got two decisions
        self.crashes: list[BaseException] = []
        self.heard = {own: Heard() for own in ("a", "b", "both-1", "both-2", "r")}
        self._threads = [threading.Thread(target=self._run, args=(own,)) for own in self.heard]

    def __enter__(self) -> "SteadyLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def wait_until_recovered(self, since: float, seconds: float = 60, quiet: float = 3) -> float:
        """Wait until every client is served again and stays so for a while; return how long that took from `since`."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            moments = [heard.recovered(since) for heard in self.heard.values()]
            if all(moments) and time.monotonic() > since + quiet:
                last = max(filter(None, moments))
                if time.monotonic() - last > quiet:
                    return last - since
            time.sleep(0.05)
        raise AssertionError(f"not every client is served again after {seconds} s: {self.refused}, {self.crashes}")

    def wait_for(self, answers: int, seconds: float = 60) -> None:
        """Wait until so many more decisions are acknowledged."""
        enough, give_up = len(self.decisions) + answers, time.monotonic() + seconds
        while len(self.decisions) < enough:
            assert time.monotonic() < give_up, (self.refused, self.crashes)
            time.sleep(0.01)

    def _run(self, own: str) -> None:
        try:
            self._send(own)
        except BaseException as error:
            self.crashes.append(error)
            raise

    def _send(self, own: str) -> None:
        port, client = random.Random(own).choice(self.ports), None
        for number in count():
            id = f"a-{5 * number}" if own == "r" else f"{own.partition('-')[0]}-{number}"
            good = False
            while not good and not self._done.is_set():
                if own != "r" or id in self.decisions:  # else it has nothing to report about yet
                    try:
                        client = client or _patient(port)
                        good = self._ask(client, own, id)
                    except LOST:
                        self.refused[0] += 1
                    self.heard[own].attempts.append((time.monotonic(), good))
                    if not good:  # to another worker with it
                        client = client and client.close()
                        port = self.ports[(self.ports.index(port) + 1) % len(self.ports)]
                time.sleep(PAUSE)
            if not good:
                return client and client.close()

    def _ask(self, client: Client, own: str, id: str) -> bool:
        """Ask once; return whether that was acknowledged."""
        if own == "r":
            answer = client.ask("POST", "/v1/outcomes/fraud", {"id": id, "fraud": len(id) % 2 == 0})
        else:
            answer = client.ask("POST", "/v1/decide", self._payment(id))
        if answer.status != 200:
            self.refused[answer.status] += 1
            return False
        if own == "r":
            self.frauds[id] = answer.json["position"]
        elif self.decisions.setdefault(id, answer.body) != answer.body:
            self.contradictions.append(id)
        return True

    def _payment(self, id: str) -> dict[str, Any]:
        chance = random.Random(id)
        fields = {"customer_id": chance.randrange(CUSTOMERS), "terminal_id": chance.randrange(TERMINALS)}
        made = payment(id, amount=chance.randrange(1, 20_000) / 100, **fields)
        return self.sent.setdefault(id, made)


def _patient(port: int) -> Client:
    client = Client(port)
    client.connection.timeout = PATIENCE
    return client
