"""Write the two samples beside this file: `access.log` and `events.jsonl`.

Every run writes the same bytes.  The log has what real logs have: four levels, requests that
share an id, latencies with a long tail, JSON at the end of some lines, a traceback, empty lines,
one line of 40 kB, names in UTF-8 and one byte that is not UTF-8.  The last event is cut off, as
by a service that died while it wrote.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
REQUESTS = 3_000
EVENTS = 2_000

SERVICES = ("gateway", "orders", "payments", "search")
CUSTOMERS = ("Ada Byron", "Zoë Müller", "Łukasz Nowak", "山田太郎", "Ольга Иванова", "José Núñez")
ROUTES = (
    ("GET", "/api/orders/{id}"),
    ("GET", "/api/search?q=lamp&page={id}"),
    ("POST", "/api/payments"),
    ("PUT", "/api/carts/{id}/items"),
    ("GET", "/health"),
)
FAILURES = (
    "upstream timeout after 5000 ms",
    "connection reset by peer",
    "card declined by provider",
    "database is locked",
)
TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/payments/gateway.py", line 118, in charge
    return self.provider.charge(order)
ProviderError: 502 Bad Gateway"""


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def request_lines(random: Random, moment: datetime) -> list[str]:
    """What the service logs about one request: one to three lines with the same request id."""
    service = random.choice(SERVICES)
    method, route = random.choice(ROUTES)
    number = random.randrange(10_000, 100_000)
    latency = random.lognormvariate(3.2, 1.0)
    failed = random.random() < 0.06

    def line(level: str, text: str, after: float = 0.0) -> str:
        when = stamp(moment + timedelta(milliseconds=after))
        return f"{when} {level:5} {service}-{number % 4} req={request} {text}"

    request = f"{random.getrandbits(48):012x}"
    lines = []
    if random.random() < 0.5:
        lines.append(line("DEBUG", f"cache {random.choice(('hit', 'miss'))} key=session:{number}"))
    if random.random() < 0.05:
        lines.append(line("INFO", f'login customer="{random.choice(CUSTOMERS)}"', 0.4))
    if latency > 120:
        lines.append(line("WARN", f"slow query took {latency * 0.8:.1f}ms table=orders", latency))
    if failed:
        payload = json.dumps({"order": number, "attempt": random.randrange(1, 4), "retry": True})
        lines.append(line("ERROR", f"{random.choice(FAILURES)} {payload}", latency))
    status = random.choice((500, 502, 504)) if failed else random.choice((200, 200, 200, 201, 404))
    client = f"198.51.100.{random.randrange(1, 255)}"
    target = route.format(id=number)
    answer = f"{method} {target} {status} {latency:.1f}ms client={client}"
    lines.append(line("ERROR" if failed else "INFO", answer, latency))
    return lines


def access_log() -> bytes:
    random = Random(20261123)
    moment = START
    lines = []
    for _ in range(REQUESTS):
        moment += timedelta(milliseconds=random.expovariate(1 / 40))
        lines += request_lines(random, moment)
    encoded = [line.encode() for line in lines]
    dump = bytes(random.choice(b"0123456789abcdef") for _ in range(40_000))
    head = f"{stamp(START)} ".encode()
    for position, odd in (
        (700, b""),
        (1_500, head + b"DEBUG search-1 payload dump " + dump),
        (2_200, head + b'WARN  orders-2 customer name is not UTF-8: "Caf\xe9 Central"'),
        (2_900, b""),
        (3_300, TRACEBACK.encode()),
        (3_800, b""),
    ):
        encoded.insert(position, odd)
    return b"\n".join(encoded) + b"\n"


def event(random: Random, moment: datetime, number: int) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": number,
        "time": stamp(moment),
        "level": random.choices(("DEBUG", "INFO", "WARN", "ERROR"), (20, 65, 10, 5))[0],
        "service": random.choice(SERVICES),
        "latency_ms": round(random.lognormvariate(3.2, 1.0), 2),
        "request": {"route": random.choice(ROUTES)[1], "cached": random.random() < 0.4},
    }
    if random.random() < 0.7:
        fields["user"] = random.choice(CUSTOMERS)
    if random.random() < 0.1:
        fields["message"] = 'said "no"\tand left\n'
    if random.random() < 0.05:
        fields["user"] = None
    return fields


def events_jsonl() -> bytes:
    random = Random(20261124)
    moment = START
    lines = []
    for number in range(EVENTS):
        moment += timedelta(milliseconds=random.expovariate(1 / 250))
        # Half of the writers escape what is not ASCII, the other half write UTF-8.
        fields = event(random, moment, number)
        lines.append(json.dumps(fields, ensure_ascii=random.random() < 0.5).encode())
    lines[-1] = lines[-1][:60]
    return b"\n".join(lines) + b"\n"


if __name__ == "__main__":
    (HERE / "access.log").write_bytes(access_log())
    (HERE / "events.jsonl").write_bytes(events_jsonl())
