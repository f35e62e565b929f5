#!/usr/bin/env bash
# Starts docker/compose.yaml on this machine's engine, hurts it, and looks whether the run goes on. Exit code 0 if it does.
#
#     docker/smoke.sh              # with the images atoll and atoll:monitor, built if they are not there
#
# It waits at most three minutes for each thing, leaves nothing behind, and takes the port ATOLL_DASHBOARD_PORT (18080) and
# the network ATOLL_SUBNET (172.30.78).
set -euo pipefail
cd "$(dirname "$0")/.."

export ATOLL_DASHBOARD_PORT=${ATOLL_DASHBOARD_PORT:-18080} ATOLL_SUBNET=${ATOLL_SUBNET:-172.30.78}
project=atoll-smoke-$$
patience_s=180
peers=(first joiner-1 joiner-2 capped)
if docker compose version > /dev/null 2>&1; then tool=(docker compose); else tool=(docker-compose); fi

compose() { "${tool[@]}" -p "$project" -f docker/compose.yaml "$@"; }
declare -A ids
log() { docker logs "${ids[$1]}" 2>&1; }
inside() { docker exec "${ids[$1]}" "${@:2}"; }
inspect() { docker inspect -f "$2" "${ids[$1]}"; }
say() { echo "[$SECONDS s] $*"; }

fail() {
    say "FAILED: $*"
    for peer in "${peers[@]}" dashboard; do
        echo "--- $peer"
        log "$peer" | tail -n 25 || true
    done
    exit 1
}

# wait_for WORDS COMMAND...: until the command succeeds.
wait_for() {
    local words=$1 deadline=$((SECONDS + patience_s))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "not within $patience_s s: $words"
        sleep 0.5
    done
    say "$words"
}

# The newest outer step that a peer has said it took part in committing; 0 before the first.
step_of() { log "$1" | sed -n 's/.*outer step \([0-9]*\)\/[0-9]*: loss.*/\1/p' | tail -n 1 | grep . || echo 0; }
has_step() { [ "$(step_of "$1")" -ge "$2" ]; }
all_have_step() {
    local wanted=$1 peer
    shift
    for peer in "$@"; do has_step "$peer" "$wanted" || return 1; done
}
# Read to its end: grep -q would leave docker logs with a broken pipe.
says() { [ -n "$(log "$1" | grep "$2" | tail -n 1)" ]; }
is_healthy() { [ "$(inspect "$1" '{{.State.Health.Status}}')" = healthy ]; }
all_healthy() { for peer in "${peers[@]}" dashboard; do is_healthy "$peer" || return 1; done; }
was_restarted() { [ "$(inspect "$1" '{{.RestartCount}}')" -ge 1 ]; }
id_of() { log "$1" | sed -n 's/.*; you are \(12D3KooW[A-Za-z0-9]*\).*/\1/p' | tail -n 1; }
# How the others' logs call a peer.
short() { id_of "$1" | tail -c 7; }
answers() { curl -fsS -o /dev/null "http://127.0.0.1:$ATOLL_DASHBOARD_PORT/" 2> /dev/null; }
is_watched() {
    [[ $(inside dashboard sh -c 'atoll watch "$(cat /first/invite)" --once --json' 2> /dev/null) =~ \"outer_step\":\ [0-9] ]]
}

clean_up() {
    compose down --volumes --remove-orphans --timeout 5 > /dev/null 2>&1 || true
}
trap clean_up EXIT

for image in "Dockerfile atoll" "Dockerfile.monitor atoll:monitor"; do
    read -r file tag <<< "$image"
    docker image inspect "$tag" > /dev/null 2>&1 || DOCKER_BUILDKIT=1 docker build -f "docker/$file" -t "$tag" .
done

compose up -d --no-build
for service in "${peers[@]}" dashboard; do ids[$service]=$(compose ps -q "$service"); done
say "up"
wait_for "all four have outer step 3" all_have_step 3 "${peers[@]}"
wait_for "all are healthy, as atoll status has it" all_healthy
[ "$(inside joiner-1 sh -c 'ls /first')" = invite ] || fail "the others can see more of the first peer than its invite"
wait_for "the dashboard answers on its port" answers
wait_for "and can watch the run" is_watched

before=$(step_of joiner-1)
inside joiner-1 sh -c 'kill -9 -1' || true
say "joiner-1 was killed"
wait_for "it was started again" was_restarted joiner-1
wait_for "it takes part again" has_step joiner-1 $((before + 2))

network=${project}_default
docker network disconnect "$network" "${ids[joiner-2]}"
say "joiner-2 is cut off"
wait_for "the others say so" says first "member $(short joiner-2) is gone"
wait_for "and go on" has_step first $(($(step_of first) + 2))
docker network connect "$network" "${ids[joiner-2]}"
say "joiner-2 is back on the network"
wait_for "it takes part again" has_step joiner-2 $(($(step_of first) + 2))
wait_for "all four have five outer steps more" all_have_step $(($(step_of first) + 5)) "${peers[@]}"

gone=$(short capped)
docker stop --time 30 "${ids[capped]}" > /dev/null
code=$(inspect capped '{{.State.ExitCode}}')
[ "$code" = 0 ] || fail "capped ended with exit code $code"
says capped "goodbye: told to end" || fail "capped said no goodbye"
say "capped was stopped, said goodbye, and ended with exit code 0"
wait_for "the others heard it" says first "member $gone is gone: left: told to end"

events() { inside "$1" sh -c 'cat /data/run/events*.jsonl /data/.local/share/atoll/*/events*.jsonl 2> /dev/null' || true; }
lineages=$(for peer in first joiner-1 joiner-2; do events "$peer"; done |
    sed -n 's/.*"outer_step_committed".*"outer_step": \([0-9]*\),.*"lineage": "\([0-9a-f]*\)".*/\1 \2/p' | sort -u)
[ "$(wc -l <<< "$lineages")" -ge 8 ] || fail "the event logs have too few outer steps"
[ -z "$(cut -d' ' -f1 <<< "$lineages" | uniq -d)" ] || fail "an outer step was committed twice: $lineages"
say "all have the same history"
compose down --volumes --timeout 30 > /dev/null 2>&1
say "OK"
