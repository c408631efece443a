import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Scanner;
import java.util.Set;
import java.util.UUID;
import java.util.regex.Pattern;
import redis.clients.jedis.DefaultJedisClientConfig;
import redis.clients.jedis.RedisClient;
import redis.clients.jedis.exceptions.JedisConnectionException;
import redis.clients.jedis.exceptions.JedisDataException;
import redis.clients.jedis.exceptions.JedisNoScriptException;

/** Writes of a service through the version fence, and what Redis cannot take now to Redrive, through the same fence. */
public class Service {
    static final String PREFIX = "redrive:"; // `redis.own_prefix` of Redrive
    static final Duration LIFE = Duration.ofDays(7); // `version.marker_ttl` of Redrive

    /** What Redis answers when it is there but takes no writes; more of them are in its documentation. */
    static final Set<String> NOT_NOW = Set.of(
            "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "OOM", "BUSY", "TRYAGAIN");

    static final Pattern TAG = Pattern.compile("^[^{]*\\{([^}]+)}");

    /** The same version, id and command go both ways, so that nothing is made twice. */
    record Write(String key, long version, String id, List<String> command) {
        Write(String key, long version, String... command) {
            this(key, version, UUID.randomUUID().toString(), List.of(command));
        }
    }

    final RedisClient redis;
    final String script;
    final String digest;
    final String redrive;
    final HttpClient http = HttpClient.newHttpClient();

    Service(RedisClient redis, String script, String redrive) {
        this.redis = redis;
        this.script = script;
        this.digest = redis.scriptLoad(script);
        this.redrive = redrive;
    }

    /** Where the version of a key is: in the same slot of a Cluster. */
    static String marker(String key) {
        var matcher = TAG.matcher(key);
        var tag = matcher.find() ? matcher.group(1) : key;
        return PREFIX + (tag.contains("}") ? "version::" : "version:{" + tag + "}:") + key;
    }

    String direct(Write write) {
        var keys = List.of(write.key, marker(write.key));
        var args = new ArrayList<String>();
        args.add(Long.toString(write.version));
        args.add(write.id);
        args.add(Long.toString(LIFE.toMillis()));
        args.add(Integer.toString(write.command.size()));
        args.addAll(write.command);
        Object answer;
        try {
            answer = redis.evalsha(digest, keys, args);
        } catch (JedisNoScriptException e) {
            // It was restarted.
            answer = redis.eval(script, keys, args);
        }
        // A list says which of several commands were refused; here is only one, and its refusal is an exception.
        return Map.of(1L, "made", 0L, "made before", -1L, "stale").get(answer);
    }

    String queue(Write write) throws IOException, InterruptedException {
        var args = new JsonArray();
        write.command.stream().skip(1).forEach(args::add);
        var task = new JsonObject();
        task.addProperty("id", write.id);
        task.addProperty("type", "simple");
        task.addProperty("command", write.command.get(0));
        task.add("args", args);
        task.addProperty("version", Long.toString(write.version));
        var request = HttpRequest.newBuilder(URI.create(redrive + "/tasks"))
                .header("Content-Type", "application/json")
                .POST(BodyPublishers.ofString(task.toString()));
        return ask(request).get("status").getAsString();
    }

    String write(Write write) throws IOException, InterruptedException {
        try {
            return direct(write);
        } catch (JedisConnectionException e) {
            return queue(write);
        } catch (JedisDataException e) {
            if (!NOT_NOW.contains(e.getMessage().split(" ")[0])) {
                throw e;
            }
            return queue(write);
        }
    }

    JsonObject ask(HttpRequest.Builder request) throws IOException, InterruptedException {
        var response = http.send(request.timeout(Duration.ofSeconds(2)).build(), BodyHandlers.ofString());
        if (response.statusCode() / 100 != 2) {
            throw new IOException(response.body());
        }
        return JsonParser.parseString(response.body()).getAsJsonObject();
    }

    // From here on: what it is good for, on keys that nobody else has.

    /** How Redrive has settled a task. */
    String outcome(Write write) throws IOException, InterruptedException {
        for (int tries = 0; tries < 300; tries++) {
            var task = ask(HttpRequest.newBuilder(URI.create(redrive + "/tasks/" + write.id)));
            if (task.has("outcome")) {
                return task.get("outcome").getAsString();
            }
            Thread.sleep(100);
        }
        throw new IOException(write.command + " is not settled");
    }

    static void check(String what, Object actual, Object expected) {
        if (!expected.equals(actual)) {
            System.out.println("FAILED: " + what + ": " + actual + ", not " + expected);
            System.exit(1);
        }
        System.out.println(what + ": " + actual);
    }

    static void ask(Scanner terminal, String what) {
        System.out.println(what + ", then press Enter");
        terminal.nextLine();
    }

    void run() throws IOException, InterruptedException {
        var terminal = new Scanner(System.in);
        var run = UUID.randomUUID().toString().substring(0, 8);
        var user = "example:user:" + run;
        var cart = "example:cart:{" + run + "}:items";
        var odd = "example:odd}" + run;
        var first = new Write(user, 1, "SET", user, "Ada");
        check("a direct SET", write(first), "made");
        check("the same once more", write(first), "made before");

        ask(terminal, "Stop Redis");
        var older = new Write(user, 2, "SET", user, "older");
        try {
            check("a direct SET without Redis", direct(older), "an exception");
        } catch (JedisConnectionException e) {
            System.out.println("a direct SET failed, and this time it takes a while until it is queued");
        }
        var newer = new Write(cart, 9, "SET", cart, "newer");
        check("a SET while Redis is away", write(newer), "queued");
        ask(terminal, "Start Redis again");

        check("a newer direct SET", write(new Write(user, 3, "SET", user, "newer")), "made");
        check("the older one, queued only now", queue(older), "queued");
        check("the older one's outcome", outcome(older), "stale");
        check("what is there", redis.get(user), "newer");

        check("the outcome of the one queued before", outcome(newer), "applied");
        check("an older direct SET, which comes late", write(new Write(cart, 8, "SET", cart, "older")), "stale");
        check("what is there", redis.get(cart), "newer");

        check("a direct EXPIRE", write(new Write(user, 5, "EXPIRE", user, "1000")), "made");
        older = new Write(user, 4, "EXPIRE", user, "1");
        check("an older EXPIRE", queue(older), "queued");
        check("its outcome", outcome(older), "stale");
        check("the longer time to live is there", redis.ttl(user) > 900, true);

        check("a direct DEL", write(new Write(user, 7, "DEL", user)), "made");
        older = new Write(user, 6, "SET", user, "older");
        check("an older SET", queue(older), "queued");
        check("its outcome", outcome(older), "stale");
        check("what was deleted stays so", redis.exists(user), false);

        check("a direct SET of a key with an odd name", write(new Write(odd, 2, "SET", odd, "newer")), "made");
        older = new Write(odd, 1, "SET", odd, "older");
        check("an older one", queue(older), "queued");
        check("its outcome", outcome(older), "stale");
        redis.del(user, cart, odd);
    }

    static String setting(String name, String otherwise) {
        return System.getenv().getOrDefault(name, otherwise);
    }

    public static void main(String[] args) throws IOException, InterruptedException {
        // A service keeps a copy of the script among its resources.
        var script = Files.readString(Path.of(setting("VERSION_FENCE", "../../../docs/version-fence.lua")));
        var timeouts = DefaultJedisClientConfig.builder().connectionTimeoutMillis(1000).socketTimeoutMillis(1000).build();
        try (var redis = RedisClient.builder()
                .fromURI(URI.create(setting("REDIS_URL", "redis://127.0.0.1:6379")))
                .clientConfig(timeouts)
                .build()) {
            new Service(redis, script, setting("REDRIVE_URL", "http://127.0.0.1:7379")).run();
        }
    }
}
