"""One window in Quix Streams: `python quix_window.py SETTINGS TOPIC EVENTS FOLDER` prints events a second.

SETTINGS are those of a client of Kafka, as JSON. It runs in the environment of Quix Streams. Count and sum of the amounts of each
customer's day are kept in RocksDB, without a changelog topic, and given out after every event. The time from the first event to
the last counts.
"""

import json
import sys
import time
from datetime import timedelta

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Sum
from quixstreams.kafka import ConnectionConfig


def main() -> None:
    settings, topic, events, folder = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    connection = ConnectionConfig(**{name.replace(".", "_"): value for name, value in settings.items()})
    application = Application(
        connection,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        state_dir=folder,
        use_changelog_topics=False,
        auto_create_topics=False,
        loglevel="ERROR",
    )
    moments: list[float] = []

    def note(value: object) -> None:
        moments.append(time.perf_counter())

    frame = application.dataframe(application.topic(topic, value_deserializer="json", key_deserializer="bytes"))
    window = frame.tumbling_window(timedelta(days=1), grace_ms=timedelta(days=1))
    window.agg(count=Count(), sum=Sum("amount")).current().update(note)
    application.run(count=events, timeout=60)
    if len(moments) < events:
        sys.exit(f"only {len(moments)} of {events} events were seen")
    print((len(moments) - 1) / (moments[-1] - moments[0]))


if __name__ == "__main__":
    main()
