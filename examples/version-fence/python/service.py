"""Writes of a service through the version fence, and what Redis cannot take now to Redrive, through the same fence."""

import json
import os
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
REDRIVE_URL = os.environ.get("REDRIVE_URL", "http://127.0.0.1:7379")
# A service keeps a copy of the script beside its code.
SCRIPT = Path(os.environ.get("VERSION_FENCE", "../../../docs/version-fence.lua")).read_text()

PREFIX = "redrive:"  # `redis.own_prefix` of Redrive
LIFE_MS = 7 * 24 * 3600 * 1000  # `version.marker_ttl` of Redrive

# What Redis answers when it is there but takes no writes; more of them are in its documentation.
NOT_NOW = {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "OOM", "BUSY", "TRYAGAIN"}

client = redis.Redis.from_url(
    REDIS_URL, decode_responses=True, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0)
)
# Sends EVALSHA, and the source where the server does not know it.
fence = client.register_script(SCRIPT)


@dataclass
class Write:
    """The same version, id and command go both ways, so that nothing is made twice."""

    key: str
    version: int
    command: list[str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


def marker(key: str) -> str:
    """Where the version of a key is: in the same slot of a Cluster."""
    tag, begin = key, key.find("{")
    end = key.find("}", begin + 1)
    if begin >= 0 and end > begin + 1:
        tag = key[begin + 1 : end]
    return f"{PREFIX}version::{key}" if "}" in tag else f"{PREFIX}version:{{{tag}}}:{key}"


def direct(write: Write) -> str:
    words = [len(write.command), *write.command]
    answer = fence(keys=[write.key, marker(write.key)], args=[write.version, write.id, LIFE_MS, *words])
    # A list says which of several commands were refused; here is only one, and its refusal is an exception.
    return {1: "made", 0: "made before", -1: "stale"}[answer]


def queue(write: Write) -> str:
    name, *args = write.command
    task = {"id": write.id, "type": "simple", "command": name, "args": args, "version": str(write.version)}
    body, headers = json.dumps(task).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{REDRIVE_URL}/tasks", body, headers)
    with urllib.request.urlopen(request, timeout=2) as answer:
        return json.load(answer)["status"]


def write(write: Write) -> str:
    try:
        return direct(write)
    except (redis.ConnectionError, redis.TimeoutError):
        return queue(write)
    except redis.ResponseError as error:
        if str(error).split(" ")[0] in NOT_NOW:
            return queue(write)
        raise


# From here on: what it is good for, on keys that nobody else has.


def outcome(write: Write) -> str:
    """How Redrive has settled a task."""
    for _ in range(300):
        with urllib.request.urlopen(f"{REDRIVE_URL}/tasks/{write.id}", timeout=2) as answer:
            task = json.load(answer)
        if "outcome" in task:
            return task["outcome"]
        time.sleep(0.1)
    raise SystemExit(f"FAILED: {write.command} is still {task['status']}")


def check(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise SystemExit(f"FAILED: {what}: {actual}, not {expected}")
    print(f"{what}: {actual}", flush=True)


def ask(what: str) -> None:
    print(f"{what}, then press Enter", flush=True)
    input()


def main() -> None:
    run = uuid.uuid4().hex[:8]
    user, cart, odd = f"example:user:{run}", f"example:cart:{{{run}}}:items", f"example:odd}}{run}"
    first = Write(user, 1, ["SET", user, "Ada"])
    check("a direct SET", write(first), "made")
    check("the same once more", write(first), "made before")

    ask("Stop Redis")
    older = Write(user, 2, ["SET", user, "older"])
    try:
        raise SystemExit(f"FAILED: Redis is still there: {direct(older)}")
    except redis.ConnectionError:
        print("a direct SET failed, and this time it takes a while until it is queued", flush=True)
    newer = Write(cart, 9, ["SET", cart, "newer"])
    check("a SET while Redis is away", write(newer), "queued")
    ask("Start Redis again")

    check("a newer direct SET", write(Write(user, 3, ["SET", user, "newer"])), "made")
    check("the older one, queued only now", queue(older), "queued")
    check("the older one's outcome", outcome(older), "stale")
    check("what is there", client.get(user), "newer")

    check("the outcome of the one queued before", outcome(newer), "applied")
    check("an older direct SET, which comes late", write(Write(cart, 8, ["SET", cart, "older"])), "stale")
    check("what is there", client.get(cart), "newer")

    check("a direct EXPIRE", write(Write(user, 5, ["EXPIRE", user, "1000"])), "made")
    older = Write(user, 4, ["EXPIRE", user, "1"])
    check("an older EXPIRE", queue(older), "queued")
    check("its outcome", outcome(older), "stale")
    check("the longer time to live is there", client.ttl(user) > 900, True)

    check("a direct DEL", write(Write(user, 7, ["DEL", user])), "made")
    older = Write(user, 6, ["SET", user, "older"])
    check("an older SET", queue(older), "queued")
    check("its outcome", outcome(older), "stale")
    check("what was deleted stays so", client.exists(user), 0)

    check("a direct SET of a key with an odd name", write(Write(odd, 2, ["SET", odd, "newer"])), "made")
    older = Write(odd, 1, ["SET", odd, "older"])
    check("an older one", queue(older), "queued")
    check("its outcome", outcome(older), "stale")
    client.delete(user, cart, odd)


main()
