#!/bin/sh
# What a machine has in the place of our agent: it is the real one, and is killed once. `dies-RUN` says when: in which of its
# verbs, once which event is the last one in the run's journal, and how many seconds later. `died-RUN` says that it was.
real="@REAL@" dir="@DIR@" verb=$2 before='' run=''
for word in "$@"; do
    [ "$before" != --run ] || run=$word
    before=$word
done
if read -r wanted after later 2> /dev/null < "$dir/dies-$run" && [ "$verb" = "$wanted" ] && [ ! -e "$dir/died-$run" ] &&
    tail -n 1 "/var/lib/echoes-appliance/runs/$run/journal.jsonl" | grep -q "\"event\":\"$after\""; then
    # By a timer that runs before it does: a shell that sleeps beside it comes too late where every core is busy. It alone,
    # and not what it has started. One that ends by itself is not killed: then it will be another one's turn. What ends in the
    # moment in which it is to be killed has 124, which is no status of its own either.
    timeout --foreground --signal=KILL "$later" "$real" "$@"
    status=$?
    case $status in 124 | 137) : > "$dir/died-$run" ;; esac
    exit "$status"
fi
exec "$real" "$@"
