"""One good payment and everything that may be wrong with one: the change, the field, the value and the reason."""

import json

GOOD = {"id": "tx-1", "time": "2018-04-02T10:00:00Z", "customer_id": 596, "terminal_id": 3156, "amount": 57.16}
GONE = object()  # stands for a field that is left out

BAD = [
    # wrong types
    ({"customer_id": "596"}, "customer_id", "596", "is a text, not a whole number"),
    ({"customer_id": 1.5}, "customer_id", "1.5", "whole"),
    ({"customer_id": True}, "customer_id", "true", "is a truth value, not a whole number"),
    ({"customer_id": None}, "customer_id", "", "is null, but required"),
    ({"customer_id": 596.0}, "customer_id", "596.0", "is written with decimals, not as a whole number"),
    ({"customer_id": [596]}, "customer_id", "[596]", "is a list, not a whole number"),
    ({"customer_id": 2**60}, "customer_id", str(2**60), "beyond"),
    ({"customer_id": 10**30}, "customer_id", str(10**30), "is beyond ±9.0072e+15"),
    ({"customer_id": -(10**4000)}, "customer_id", "-1000", "is beyond ±9.0072e+15"),
    ({"amount": "57.16"}, "amount", "57.16", "is a text, not a number"),
    ({"amount": [57.16]}, "amount", "[57.16]", "not a number"),
    ({"amount": {}}, "amount", "{}", "is an object, not a number"),
    ({"amount": True}, "amount", "true", "is a truth value, not a number"),
    ({"id": 7}, "id", "7", "is a number, not a text"),
    ({"id": None}, "id", "", "is null, but required"),
    # missing and unknown fields
    ({"amount": GONE}, "amount", "", "missing"),
    ({"id": GONE}, "id", "", "missing"),
    ({"time": GONE}, "time", "", "missing"),
    ({"amuont": 3}, "amuont", "3", "is not a field of this source; did you mean 'amount'?"),
    ({"amuont": 3, "amount": GONE}, "amuont", "3", "did you mean 'amount'?"),
    ({"zz": 3, "customer_id": "x"}, "zz", "3", "there is id, time, customer_id, terminal_id, amount"),
    # numbers that are none, or not of this resolution
    ({"amount": float("nan")}, "amount", "nan", "not a finite number"),
    ({"amount": float("inf")}, "amount", "inf", "not a finite number"),
    ({"amount": -float("inf")}, "amount", "-inf", ""),
    ({"amount": -3.2}, "amount", "-3.2", "below 0"),
    ({"amount": -0.001}, "amount", "-0.001", "below 0"),
    ({"amount": 0.006}, "amount", "0.006", "is finer than its resolution of 0.01; declare a finer Resolution"),
    ({"amount": 5e-324}, "amount", "5e-324", "is finer than its resolution of 0.01"),
    ({"amount": 10**400}, "amount", "1000", "is beyond ±4.39805e+10, the most its resolution allows"),
    ({"amount": 1e12}, "amount", "1000000000000.0", "resolution"),
    ({"amount": 1e308}, "amount", "1e+308", "resolution"),
    # times
    ({"time": "2018-04-02T10:00:00"}, "time", "2018-04-02T10:00:00", "no time zone"),
    ({"time": "2018-04-02"}, "time", "2018-04-02", "is a day without a time"),
    ({"time": "soon"}, "time", "soon", "is not a time"),
    ({"time": 1522663200}, "time", "1522663200", "is a number, not a time"),
    ({"time": "1969-12-31T23:59:59Z"}, "time", "1969", "1970"),
    ({"time": "2200-01-01T00:00:00Z"}, "time", "2200", "2200"),
    ({"time": "2018-02-30T10:00:00Z"}, "time", "2018-02-30", "does not exist"),
    ({"time": "2018-04-02T10:00:00+25:00"}, "time", "2018-04-02", "does not exist"),
    ({"time": "20240101"}, "time", "20240101", "is a number, not a time; write it as in 2018-07-25T10:00:00Z"),
    ({"time": "45292.5"}, "time", "45292.5", "is a number, not a time"),
    ({"time": "1522663200000"}, "time", "1522663200000", "is a number, not a time"),
    ({"time": 45292.5}, "time", "45292.5", "is a number, not a time"),
    ({"time": True}, "time", "true", "is a truth value, not a time"),
    ({"time": None}, "time", "", "is null, but required"),
    ({"time": "2018-04-02T24:00:00Z"}, "time", "2018-04-02", "is not a time"),
    # ids
    ({"id": ""}, "id", "", "is empty"),
    ({"id": "x" * 201}, "id", "xxx", "has more characters than 200"),
    ({"id": " \t"}, "id", " ", "blank"),
    ({"id": "a\x00b"}, "id", "a", "control"),
    ({"id": "a\nb"}, "id", "a", "control"),
]

NO_JSON = [
    b"",
    b"{",
    b"\xff\xfe",
    json.dumps(GOOD).encode("utf-16"),
    json.dumps(GOOD | {"customer_id": 0}).replace(": 0", ": " + "9" * 5_000).encode("utf-16"),
    json.dumps(GOOD).replace("596", "9" * 5_000).encode() + b"x",
    b'{"id": "tx-1",}',
    b'{"a":' * 100_000,
    b"[" * 1_000_000,
    json.dumps(GOOD).encode()[:-1],
    json.dumps(GOOD).encode() + b"x",
]
