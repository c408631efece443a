// Writes of a service through the version fence, and what Redis cannot take now to Redrive, through the same fence.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	prefix = "redrive:"         // `redis.own_prefix` of Redrive
	life   = 7 * 24 * time.Hour // `version.marker_ttl` of Redrive
)

// What Redis answers when it is there but takes no writes; more of them are in its documentation.
var notNow = []string{
	"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "OOM", "BUSY", "TRYAGAIN",
}

// The same version, id and command go both ways, so that nothing is made twice.
type write struct {
	key     string
	version int64
	id      string
	command []string
}

func newWrite(key string, version int64, command ...string) write {
	return write{key, version, rand.Text(), command}
}

// Where the version of a key is: in the same slot of a Cluster.
func marker(key string) string {
	tag := key
	if _, rest, found := strings.Cut(key, "{"); found {
		if inner, _, closed := strings.Cut(rest, "}"); closed && inner != "" {
			tag = inner
		}
	}
	if strings.Contains(tag, "}") {
		return prefix + "version::" + key
	}
	return prefix + "version:{" + tag + "}:" + key
}

type service struct {
	redis   *redis.Client
	fence   *redis.Script
	http    http.Client
	redrive string
}

func (s *service) direct(ctx context.Context, w write) (string, error) {
	args := []any{w.version, w.id, life.Milliseconds(), len(w.command)}
	for _, word := range w.command {
		args = append(args, word)
	}
	// Sends EVALSHA, and the source where the server does not know it.
	answer, err := s.fence.Run(ctx, s.redis, []string{w.key, marker(w.key)}, args...).Int()
	if err != nil {
		return "", err
	}
	switch answer {
	case 1:
		return "made", nil
	case 0:
		return "made before", nil
	case -1:
		return "stale", nil
	default: // 2 only of several commands, some of which had been refused
		return "", fmt.Errorf("the fence answered %d", answer)
	}
}

func (s *service) queue(ctx context.Context, w write) (string, error) {
	task, err := json.Marshal(map[string]any{
		"id": w.id, "type": "simple", "command": w.command[0], "args": w.command[1:], "version": fmt.Sprint(w.version),
	})
	if err != nil {
		return "", err
	}
	answer, err := s.ask(ctx, http.MethodPost, "/tasks", task, http.StatusAccepted)
	return answer["status"], err
}

func (s *service) write(ctx context.Context, w write) (string, error) {
	made, err := s.direct(ctx, w)
	var refusal redis.Error
	if err == nil || errors.As(err, &refusal) && !slices.Contains(notNow, strings.Fields(refusal.Error())[0]) {
		return made, err
	}
	return s.queue(ctx, w)
}

func (s *service) ask(ctx context.Context, method, path string, body []byte, status int) (map[string]string, error) {
	request, err := http.NewRequestWithContext(ctx, method, s.redrive+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := s.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if response.StatusCode != status {
		return nil, fmt.Errorf("%s %s: %v", method, path, answer)
	}
	texts := map[string]string{}
	for name, value := range answer {
		texts[name] = fmt.Sprint(value)
	}
	return texts, nil
}

// From here on: what it is good for, on keys that nobody else has.

// How Redrive has settled a task.
func (s *service) outcome(ctx context.Context, w write) (string, error) {
	for range 300 {
		answer, err := s.ask(ctx, http.MethodGet, "/tasks/"+w.id, nil, http.StatusOK)
		if err != nil || answer["outcome"] != "" {
			return answer["outcome"], err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return "", fmt.Errorf("%v is not settled", w.command)
}

func check[T comparable](what string, expected T) func(actual T, err error) {
	return func(actual T, err error) {
		if err != nil || actual != expected {
			fmt.Printf("FAILED: %s: %v %v, not %v\n", what, actual, err, expected)
			os.Exit(1)
		}
		fmt.Printf("%s: %v\n", what, actual)
	}
}

func ask(what string) {
	fmt.Println(what + ", then press Enter")
	fmt.Scanln()
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	// A service keeps a copy of the script beside its code, and embeds it.
	script, err := os.ReadFile(setting("VERSION_FENCE", "../../../docs/version-fence.lua"))
	if err != nil {
		panic(err)
	}
	options, err := redis.ParseURL(setting("REDIS_URL", "redis://127.0.0.1:6379"))
	if err != nil {
		panic(err)
	}
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = time.Second, time.Second, time.Second
	options.MaxRetries, options.DialerRetries = -1, 1 // Redrive tries again
	s := &service{
		redis:   redis.NewClient(options),
		fence:   redis.NewScript(string(script)),
		http:    http.Client{Timeout: 2 * time.Second},
		redrive: setting("REDRIVE_URL", "http://127.0.0.1:7379"),
	}
	ctx := context.Background()

	run := rand.Text()[:8]
	user, cart, odd := "example:user:"+run, "example:cart:{"+run+"}:items", "example:odd}"+run
	first := newWrite(user, 1, "SET", user, "Ada")
	check("a direct SET", "made")(s.write(ctx, first))
	check("the same once more", "made before")(s.write(ctx, first))

	ask("Stop Redis")
	older := newWrite(user, 2, "SET", user, "older")
	if made, err := s.direct(ctx, older); err == nil {
		check("a direct SET without Redis", "an error")(made, nil)
	}
	fmt.Println("a direct SET failed, and this time it takes a while until it is queued")
	newer := newWrite(cart, 9, "SET", cart, "newer")
	check("a SET while Redis is away", "queued")(s.write(ctx, newer))
	ask("Start Redis again")

	check("a newer direct SET", "made")(s.write(ctx, newWrite(user, 3, "SET", user, "newer")))
	check("the older one, queued only now", "queued")(s.queue(ctx, older))
	check("the older one's outcome", "stale")(s.outcome(ctx, older))
	check("what is there", "newer")(s.redis.Get(ctx, user).Result())

	check("the outcome of the one queued before", "applied")(s.outcome(ctx, newer))
	check("an older direct SET, which comes late", "stale")(s.write(ctx, newWrite(cart, 8, "SET", cart, "older")))
	check("what is there", "newer")(s.redis.Get(ctx, cart).Result())

	check("a direct EXPIRE", "made")(s.write(ctx, newWrite(user, 5, "EXPIRE", user, "1000")))
	older = newWrite(user, 4, "EXPIRE", user, "1")
	check("an older EXPIRE", "queued")(s.queue(ctx, older))
	check("its outcome", "stale")(s.outcome(ctx, older))
	left, err := s.redis.TTL(ctx, user).Result()
	check("the longer time to live is there", true)(left > 900*time.Second, err)

	check("a direct DEL", "made")(s.write(ctx, newWrite(user, 7, "DEL", user)))
	older = newWrite(user, 6, "SET", user, "older")
	check("an older SET", "queued")(s.queue(ctx, older))
	check("its outcome", "stale")(s.outcome(ctx, older))
	check("what was deleted stays so", int64(0))(s.redis.Exists(ctx, user).Result())

	check("a direct SET of a key with an odd name", "made")(s.write(ctx, newWrite(odd, 2, "SET", odd, "newer")))
	older = newWrite(odd, 1, "SET", odd, "older")
	check("an older one", "queued")(s.queue(ctx, older))
	check("its outcome", "stale")(s.outcome(ctx, older))
	s.redis.Del(ctx, user, cart, odd)
}
