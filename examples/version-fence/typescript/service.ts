// Writes of a service through the version fence, and what Redis cannot take now to Redrive, through the same fence.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis, ReplyError, type Result } from "ioredis";

const { REDIS_URL = "redis://127.0.0.1:6379", REDRIVE_URL = "http://127.0.0.1:7379" } = process.env;
// A service keeps a copy of the script beside its code.
const SCRIPT = readFileSync(process.env.VERSION_FENCE ?? "../../../docs/version-fence.lua", "utf8");

const PREFIX = "redrive:"; // `redis.own_prefix` of Redrive
const LIFE_MS = 7 * 24 * 3600 * 1000; // `version.marker_ttl` of Redrive

// What Redis answers when it is there but takes no writes; more of them are in its documentation.
const NOT_NOW = new Set(
  "LOADING READONLY MASTERDOWN CLUSTERDOWN NOREPLICAS MISCONF OOM BUSY TRYAGAIN".split(" "),
);

declare module "ioredis" {
  interface RedisCommander<Context> {
    fence(key: string, marker: string, ...args: (string | number)[]): Result<number, Context>;
  }
}

const redis = new Redis(REDIS_URL, {
  connectTimeout: 1000,
  commandTimeout: 1000,
  retryStrategy: () => 100, // the connection comes back by itself
  // Without these the client would keep writes in memory and make them later, as Redrive does, but not as safely.
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: 0,
  // Sends EVALSHA, and the source where the server does not know it.
  scripts: { fence: { lua: SCRIPT, numberOfKeys: 2 } },
});
redis.on("error", () => {}); // each command says it itself

/** The same version, id and command go both ways, so that nothing is made twice. */
interface Write {
  key: string;
  version: bigint; // a number is exact only up to 2^53
  command: [string, ...string[]];
  id: string;
}

function newWrite(key: string, version: bigint, ...command: Write["command"]): Write {
  return { key, version, command, id: randomUUID() };
}

/** Where the version of a key is: in the same slot of a Cluster. */
function marker(key: string): string {
  const tag = /^[^{]*\{([^}]+)\}/s.exec(key)?.[1] ?? key;
  return tag.includes("}") ? `${PREFIX}version::${key}` : `${PREFIX}version:{${tag}}:${key}`;
}

async function direct({ key, version, id, command }: Write): Promise<string> {
  const answer = await redis.fence(key, marker(key), `${version}`, id, LIFE_MS, command.length, ...command);
  const made = new Map([[1, "made"], [0, "made before"], [-1, "stale"]]).get(answer);
  if (made === undefined) {
    // 2 only of several commands, some of which had been refused
    throw new Error(`the fence answered ${answer}`);
  }
  return made;
}

async function queue({ version, id, command: [command, ...args] }: Write): Promise<string> {
  const task = { id, type: "simple", command, args, version: `${version}` };
  const body = JSON.stringify(task);
  return (await ask("/tasks", { method: "POST", headers: { "Content-Type": "application/json" }, body })).status!;
}

async function write(write: Write): Promise<string> {
  try {
    return await direct(write);
  } catch (error) {
    if (error instanceof ReplyError && !NOT_NOW.has((error as Error).message.split(" ")[0]!)) {
      throw error;
    }
    return queue(write);
  }
}

async function ask(path: string, init?: RequestInit): Promise<{ status?: string; outcome?: string }> {
  const response = await fetch(REDRIVE_URL + path, { ...init, signal: AbortSignal.timeout(2000) });
  if (!response.ok) {
    throw new Error(await response.text());
  }
  return response.json();
}

// From here on: what it is good for, on keys that nobody else has.

/** How Redrive has settled a task. */
async function outcome({ id, command }: Write): Promise<string> {
  for (let tries = 0; tries < 300; tries++) {
    const task = await ask(`/tasks/${id}`);
    if (task.outcome !== undefined) {
      return task.outcome;
    }
    await sleep(100);
  }
  throw new Error(`${command} is not settled`);
}

function check(what: string, actual: unknown, expected: unknown): void {
  if (actual !== expected) {
    console.log(`FAILED: ${what}: ${actual}, not ${expected}`);
    process.exit(1);
  }
  console.log(`${what}: ${actual}`);
}

const terminal = createInterface(process.stdin);

async function pause(what: string): Promise<void> {
  console.log(`${what}, then press Enter`);
  await terminal.question("");
}

async function isReady(): Promise<void> {
  while (redis.status !== "ready") {
    await sleep(20);
  }
}

async function main(): Promise<void> {
  await isReady();
  const run = randomUUID().slice(0, 8);
  const [user, cart, odd] = [`example:user:${run}`, `example:cart:{${run}}:items`, `example:odd}${run}`];
  const first = newWrite(user, 1n, "SET", user, "Ada");
  check("a direct SET", await write(first), "made");
  check("the same once more", await write(first), "made before");

  await pause("Stop Redis");
  let older = newWrite(user, 2n, "SET", user, "older");
  const failed = await direct(older).catch(() => "failed");
  check("a direct SET, and this time it takes a while until it is queued", failed, "failed");
  const newer = newWrite(cart, 9n, "SET", cart, "newer");
  check("a SET while Redis is away", await write(newer), "queued");
  await pause("Start Redis again");
  await isReady();

  check("a newer direct SET", await write(newWrite(user, 3n, "SET", user, "newer")), "made");
  check("the older one, queued only now", await queue(older), "queued");
  check("the older one's outcome", await outcome(older), "stale");
  check("what is there", await redis.get(user), "newer");

  check("the outcome of the one queued before", await outcome(newer), "applied");
  check("an older direct SET, which comes late", await write(newWrite(cart, 8n, "SET", cart, "older")), "stale");
  check("what is there", await redis.get(cart), "newer");

  check("a direct EXPIRE", await write(newWrite(user, 5n, "EXPIRE", user, "1000")), "made");
  older = newWrite(user, 4n, "EXPIRE", user, "1");
  check("an older EXPIRE", await queue(older), "queued");
  check("its outcome", await outcome(older), "stale");
  check("the longer time to live is there", (await redis.ttl(user)) > 900, true);

  check("a direct DEL", await write(newWrite(user, 7n, "DEL", user)), "made");
  older = newWrite(user, 6n, "SET", user, "older");
  check("an older SET", await queue(older), "queued");
  check("its outcome", await outcome(older), "stale");
  check("what was deleted stays so", await redis.exists(user), 0);

  check("a direct SET of a key with an odd name", await write(newWrite(odd, 2n, "SET", odd, "newer")), "made");
  older = newWrite(odd, 1n, "SET", odd, "older");
  check("an older one", await queue(older), "queued");
  check("its outcome", await outcome(older), "stale");
  await redis.del(user, cart, odd);
}

await main();
terminal.close();
await redis.quit();
